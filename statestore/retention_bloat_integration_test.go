//go:build integration

package statestore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"millrace"
)

// TestRetainedTablesDoNotGrow commits round after round of what the retention deletes
// again: the room of dead rows is used anew, and no transaction of it keeps vacuum
// from making that room.
func TestRetainedTablesDoNotGrow(t *testing.T) {
	s := newStore(t)
	cfg := s.cfg.Pool.Config()
	cfg.ConnConfig.RuntimeParams["application_name"] = "retention under test"
	r := newRetention(t, s, func(c *RetentionConfig) {
		c.Pool, c.Lease = newPool(t, cfg), time.Minute
		c.Completions, c.Steps = time.Millisecond, 7*day
	})

	// A transaction that lasts is seen by how long it has been open.
	watching, stop := context.WithCancel(t.Context())
	var watcher sync.WaitGroup
	var longest float64
	watcher.Go(func() {
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-watching.Done():
				return
			case <-ticker.C:
			}
			var open float64
			err := s.cfg.Pool.QueryRow(watching, `SELECT COALESCE(max(EXTRACT(epoch FROM clock_timestamp() - xact_start)), 0)::float8
				FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'retention under test'`).Scan(&open)
			if err != nil {
				if watching.Err() == nil {
					t.Error(err)
				}
				return
			}
			longest = max(longest, open)
		}
	})

	tables := []string{"completions", "steps", "outbox"}
	// Vacuum of the server's own accord would come in between, and cut empty tables off.
	for _, table := range tables {
		exec(t, s.cfg.Pool, `ALTER TABLE millrace.`+table+` SET (autovacuum_enabled = false)`)
	}
	first := map[string]int{}
	const (
		rounds = 6
		turns  = 400
		bulk   = 8000
	)
	for round := range rounds {
		var wg sync.WaitGroup
		for lane := range 8 {
			wg.Go(func() {
				conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d-%d", round, lane)}
				for i := range turns / 8 {
					c := completion(fmt.Sprintf("task-%d-%d-%d", round, lane, i), conv)
					if got, err := s.Commit(t.Context(), c); got != millrace.Committed || err != nil {
						t.Errorf("%v, %v", got, err)
						return
					}
					conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)
				}
			})
		}
		wg.Wait()
		tasks := make([]string, bulk)
		for i := range tasks {
			tasks[i] = fmt.Sprintf("bulk-%d-%d", round, i)
		}
		ended(t, s.cfg.Pool, time.Hour, tasks...)
		// Of turns that left no completion.
		exec(t, s.cfg.Pool, `INSERT INTO millrace.steps (task_id, redrive, name, request_hash, base_version, incarnation, began_at)
			SELECT 'step-' || $1::integer || '-' || g, 0, 'llm', decode(repeat('00', 32), 'hex'), 0, gen_random_uuid(), now() - interval '8 days' FROM generate_series(1, $2) g`, round, bulk)
		exec(t, s.cfg.Pool, `DELETE FROM millrace.outbox`) // published
		again(t, s.cfg.Pool)
		mustStep(t, r)
		for _, table := range tables {
			if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.`+table); n != 0 {
				t.Fatalf("%d rows of %s are left", n, table)
			}
			// The end of an empty table would be cut off, and there be nothing to use anew.
			exec(t, s.cfg.Pool, `VACUUM (TRUNCATE false) millrace.`+table)
			size := count(t, s.cfg.Pool, `SELECT pg_relation_size('millrace.`+table+`')`)
			if round == 0 {
				first[table] = size
			}
			if size == 0 || size > 2*first[table] {
				t.Errorf("%s: %d bytes after round %d, %d after the first", table, size, round+1, first[table])
			}
		}
	}
	stop()
	watcher.Wait()
	t.Logf("the longest transaction took %.0f ms", 1000*longest)
	// A batch is to take 100 ms; the machine may be busy.
	if longest == 0 || longest > 2 {
		t.Errorf("the longest transaction took %.3f s", longest)
	}
}
