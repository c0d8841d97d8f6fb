package statestore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace"
)

//go:embed sql/completed.sql
var completedSQL string

type pendingLookup struct {
	key  millrace.Key
	done chan lookupResult
}

type lookupResult struct {
	completed bool
	err       error
}

var errStopped = errors.New("the store has stopped")

// Completed reports whether this run of the task has been committed. Concurrent
// calls share one query.
func (s *Store) Completed(ctx context.Context, key millrace.Key) (bool, error) {
	p := &pendingLookup{key: key, done: make(chan lookupResult, 1)}
	if !s.lookups.push(p) {
		return false, millrace.Unavailable(errStopped)
	}
	select {
	case r := <-p.done:
		return r.completed, r.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (s *Store) lookupLoop(ctx context.Context) {
	for {
		batch := s.lookups.take(1000, func(*pendingLookup) bool { return true })
		if batch == nil {
			return
		}
		found, err := s.completed(ctx, batch)
		for _, p := range batch {
			p.done <- lookupResult{completed: found[p.key], err: err}
		}
	}
}

func (s *Store) completed(ctx context.Context, batch []*pendingLookup) (map[millrace.Key]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	ids := make([]string, len(batch))
	redrives := make([]int32, len(batch))
	for i, p := range batch {
		ids[i], redrives[i] = p.key.ID, int32(p.key.Redrive) //nolint:gosec // bounded by the codec
	}
	rows, err := s.cfg.Pool.Query(ctx, completedSQL, ids, redrives)
	if err != nil {
		return nil, classify(fmt.Errorf("look up completions: %w", err))
	}
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[millrace.Key])
	if err != nil {
		return nil, classify(fmt.Errorf("look up completions: %w", err))
	}
	found := make(map[millrace.Key]bool, len(keys))
	for _, k := range keys {
		found[k] = true
	}
	return found, nil
}
