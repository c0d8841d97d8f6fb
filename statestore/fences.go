package statestore

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace"
)

//go:embed sql/raise_fences.sql
var raiseFencesSQL string

// RaiseFences makes it durable that records below fences may be started, and
// returns what was durable before, in the same order. A fence that is higher
// already stays. No two fences may be of one partition.
func (s *Store) RaiseFences(ctx context.Context, fences []millrace.Fence) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	topics := make([][16]byte, len(fences))
	partitions := make([]int32, len(fences))
	below := make([]int64, len(fences))
	for i, f := range fences {
		topics[i], partitions[i], below[i] = f.TopicID, f.Partition, f.Below
	}
	rows, err := s.cfg.Pool.Query(ctx, raiseFencesSQL, topics, partitions, below)
	if err != nil {
		return nil, classify(fmt.Errorf("raise fences: %w", err))
	}
	before, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, classify(fmt.Errorf("raise fences: %w", err))
	}
	return before, nil
}
