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

// Completed returns those of the given runs of tasks that have been committed.
// Concurrent calls for single runs share one query.
func (s *Store) Completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	if len(keys) != 1 {
		return s.completed(ctx, keys)
	}
	p := &pendingLookup{key: keys[0], done: make(chan lookupResult, 1)}
	if !s.lookups.push(p) {
		return nil, millrace.Unavailable(errStopped)
	}
	select {
	case r := <-p.done:
		return map[millrace.Key]bool{p.key: r.completed}, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) lookupLoop(ctx context.Context) {
	for {
		batch := s.lookups.take(1000, func(*pendingLookup) bool { return true })
		if batch == nil {
			return
		}
		keys := make([]millrace.Key, len(batch))
		for i, p := range batch {
			keys[i] = p.key
		}
		found, err := s.completed(ctx, keys)
		for _, p := range batch {
			p.done <- lookupResult{completed: found[p.key], err: err}
		}
	}
}

func (s *Store) completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	if len(keys) == 0 {
		return nil, nil //nolint:nilnil // nothing of nothing
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	ids := make([]string, len(keys))
	redrives := make([]int32, len(keys))
	for i, k := range keys {
		ids[i], redrives[i] = k.ID, int32(k.Redrive) //nolint:gosec // bounded by the codec
	}
	rows, err := s.cfg.Pool.Query(ctx, completedSQL, ids, redrives)
	if err != nil {
		return nil, classify(fmt.Errorf("look up completions: %w", err))
	}
	completed, err := pgx.CollectRows(rows, pgx.RowToStructByPos[millrace.Key])
	if err != nil {
		return nil, classify(fmt.Errorf("look up completions: %w", err))
	}
	found := make(map[millrace.Key]bool, len(completed))
	for _, k := range completed {
		found[k] = true
	}
	return found, nil
}
