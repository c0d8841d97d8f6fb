//go:build integration

package statestore

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"millrace"
)

func TestALoserLeavesNoTrace(t *testing.T) {
	s := newStore(t)
	mustCommit(t, s, completion("task", millrace.Conversation{ID: "conv"}), millrace.Committed)
	loser := completion("task", millrace.Conversation{ID: "conv", Version: 1, Length: 1})
	loser.Status, loser.DeadLetter = millrace.StatusFailed, &millrace.DeadLetter{Reason: millrace.ReasonPermanent}
	mustCommit(t, s, loser, millrace.AlreadyCompleted)
	for query, want := range map[string]int{
		`SELECT count(*) FROM millrace.dead_letters`: 0,
		`SELECT version FROM millrace.conversations`: 1,
		`SELECT length FROM millrace.conversations`:  1,
		`SELECT count(*) FROM millrace.messages`:     1,
		`SELECT count(*) FROM millrace.outbox`:       2,
	} {
		if n := count(t, s.cfg.Pool, query); n != want {
			t.Errorf("%s: %d, want %d", query, n, want)
		}
	}
	// A conflict keeps the journal: the turn runs again.
	if _, _, err := s.Begin(t.Context(), stepOn(0, "a")); err != nil {
		t.Fatal(err)
	}
	late := completion("late", millrace.Conversation{ID: "conv"})
	step := stepOn(0, "a")
	step.Task.ID = "late"
	if _, _, err := s.Begin(t.Context(), step); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, late, millrace.Conflict)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.steps WHERE task_id = 'late'`); n != 1 {
		t.Error("the journal of a turn that has to run again is gone")
	}
}

// TestOverlappingBatchesNeverDeadlock commits batches of the same conversations,
// keys and unkeyed tasks side by side, each in an order of its own. A retry would
// hide a deadlock, so this looks beneath it.
func TestOverlappingBatchesNeverDeadlock(t *testing.T) {
	s := newStore(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 5))
	for round := range 15 {
		var wg sync.WaitGroup
		start := make(chan struct{})
		for worker := range 4 {
			var batch []*pendingCommit
			for _, i := range rng.Perm(60) {
				c := completion(fmt.Sprintf("task-%d-%d", round, i), millrace.Conversation{})
				switch i % 3 {
				case 0: // another task of a conversation that the round creates
					c = completion(fmt.Sprintf("task-%d-%d-%d", round, i, worker), millrace.Conversation{ID: fmt.Sprintf("new-%d-%d", round, i)})
				case 1: // the same task of a conversation that is there from the second round on
					c = completion(c.Task.ID, millrace.Conversation{ID: fmt.Sprintf("Old_%d-%c", i, 'a'+i%7), Version: int64(round)})
				default: // the same unkeyed task
					c.Effects.State, c.Effects.Messages = nil, nil
				}
				c.Effects.Events[0].Key = fmt.Sprintf("key-%d", rng.IntN(40))
				batch = append(batch, &pendingCommit{completion: c})
			}
			wg.Go(func() {
				<-start
				if _, err := s.commitOnce(t.Context(), batch); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		close(start)
		wg.Wait()
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.completions`); n != 15*60 {
		t.Errorf("%d completions, want one of each task and conversation", n)
	}
}

// TestNothingButTheSortKeepsBatchesApart leaves batches one kind of rows to meet
// in, so that no earlier lock puts them in line.
func TestNothingButTheSortKeepsBatchesApart(t *testing.T) {
	s := newStore(t)
	race := func(t *testing.T, turn func(round, worker, i int) millrace.Completion) {
		for round := range 20 {
			var wg sync.WaitGroup
			start := make(chan struct{})
			for worker := range 4 {
				var batch []*pendingCommit
				for _, i := range rand.Perm(100) {
					batch = append(batch, &pendingCommit{completion: turn(round, worker, i)})
				}
				wg.Go(func() {
					<-start
					if _, err := s.commitOnce(t.Context(), batch); err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			close(start)
			wg.Wait()
		}
	}
	t.Run("conversations", func(t *testing.T) {
		if _, err := s.cfg.Pool.Exec(t.Context(), `INSERT INTO millrace.conversations (id) SELECT 'c' || n FROM generate_series(0, 99) AS n`); err != nil {
			t.Fatal(err)
		}
		race(t, func(round, worker, i int) millrace.Completion {
			return completion(fmt.Sprintf("k-%d-%d-%d", round, worker, i), millrace.Conversation{ID: fmt.Sprintf("c%d", i), Version: int64(round)})
		})
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.conversations WHERE version <> 20 OR length <> 20`); n != 0 {
			t.Errorf("%d conversations did not take one turn a round", n)
		}
	})
	t.Run("tasks", func(t *testing.T) {
		race(t, func(round, _, i int) millrace.Completion {
			c := completion(fmt.Sprintf("u-%d-%d", round, i), millrace.Conversation{})
			c.Effects.State, c.Effects.Messages = nil, nil
			return c
		})
	})
}

func TestTwoTurnsOnOneVersionWaitForEachOther(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	if _, err := pool.Exec(t.Context(), `INSERT INTO millrace.conversations (id) VALUES ('conv')`); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM millrace.conversations FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	outcomes := make(chan millrace.Outcome, 2)
	for i := range 2 {
		go func() {
			outcome, err := s.Commit(t.Context(), completion(fmt.Sprintf("task-%d", i), millrace.Conversation{ID: "conv"}))
			if err != nil {
				t.Error(err)
			}
			outcomes <- outcome
		}()
		awaitBlocked(t, pool, i+1)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, b := <-outcomes, <-outcomes; a+b != millrace.Committed+millrace.Conflict {
		t.Errorf("%v and %v, want one committed and one conflict", a, b)
	}
}
