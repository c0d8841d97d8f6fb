package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace"
)

//go:embed sql/coalesce.sql
var coalesceSQL string

//go:embed sql/coalesce_anew.sql
var coalesceAnewSQL string

// coalescedStep names the row of the journal that holds a group.
const coalescedStep = millrace.ReservedSteps + "coalesced"

// groupedKey is a member of a group as the journal carries it.
type groupedKey struct {
	ID      string `json:"id"`
	Redrive int    `json:"redrive"`
}

// Coalesce makes it durable that a turn of leader answers members as well, and
// returns the members that it is to answer: those that an earlier run has
// journaled, until the leader is complete, or else those of the given ones that
// are neither complete nor begun. None are returned when a run of the leader
// alone has begun a step.
//
// Anew forgets what was journaled for the leader, its steps among it.
func (s *Store) Coalesce(ctx context.Context, leader millrace.Key, members []millrace.Key, anew bool) ([]millrace.Key, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	ids := make([]string, len(members))
	redrives := make([]int32, len(members))
	for i, k := range members {
		ids[i], redrives[i] = k.ID, int32(k.Redrive) //nolint:gosec // bounded by the codec
	}
	sql := &pgx.Batch{}
	var repaid int64
	if anew {
		sql.Queue(coalesceAnewSQL, leader.ID, leader.Redrive, coalescedStep).QueryRow(func(row pgx.Row) error { return row.Scan(&repaid) })
	}
	var (
		held, inserted []byte
		wanted         bool
	)
	sql.Queue(coalesceSQL, leader.ID, leader.Redrive, coalescedStep, ids, redrives, s.incarnation).QueryRow(func(row pgx.Row) error {
		return row.Scan(&held, &inserted, &wanted)
	})
	if err := s.cfg.Pool.SendBatch(ctx, sql).Close(); err != nil {
		return nil, classify(fmt.Errorf("journal coalesced tasks of %q: %w", leader.ID, err))
	}
	if repaid > 0 {
		s.metrics.repaid.WithLabelValues("regrouped").Add(float64(repaid))
	}
	switch {
	case held != nil:
		return decodeGroup(leader, held)
	case inserted != nil:
		return decodeGroup(leader, inserted)
	case wanted:
		// Another run of the task inserted its group between the statement's snapshot
		// and its insert.
		return nil, millrace.Unavailable(errors.New("another run of the task has just journaled the tasks that it answers"))
	}
	return nil, nil
}

func decodeGroup(leader millrace.Key, output []byte) ([]millrace.Key, error) {
	var group []groupedKey
	if err := json.Unmarshal(output, &group); err != nil {
		return nil, fmt.Errorf("decode the tasks that the journal has for %q: %w", leader.ID, err)
	}
	members := make([]millrace.Key, len(group))
	for i, k := range group {
		members[i] = millrace.Key(k)
	}
	return members, nil
}
