//go:build integration

package statestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace"
)

func TestCommitWritesAllEffectsAtOnce(t *testing.T) {
	s := newStore(t)
	c := completion("task-1", millrace.Conversation{ID: "conv"})
	mustCommit(t, s, c, millrace.Committed)

	conv, err := s.Conversation(t.Context(), "conv")
	if err != nil {
		t.Fatal(err)
	}
	if conv.Version != 1 || conv.Length != 1 || string(conv.State) != `{"last":"task-1"}` {
		t.Errorf("conversation %+v", conv)
	}
	if len(conv.Tail) != 1 || conv.Tail[0].Content != "said by task-1" || conv.Tail[0].Seq != 1 || conv.Tail[0].TaskID != "task-1" {
		t.Errorf("history %+v", conv.Tail)
	}
	result, err := s.Task(t.Context(), "task-1")
	if err != nil {
		t.Fatal(err)
	}
	if result.Status != millrace.StatusCompleted || string(result.Result) != `"done"` || result.Usage.OutputTokens != 20 || result.Attempts != 1 {
		t.Errorf("task %+v", result)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox WHERE event_id IN ('task-1.event0', 'task-1.result')`); n != 2 {
		t.Errorf("%d outbox rows, want the event and the result", n)
	}
}

func TestCommitOfTheSameTaskAgainChangesNothing(t *testing.T) {
	s := newStore(t)
	first := completion("task-1", millrace.Conversation{ID: "conv"})
	mustCommit(t, s, first, millrace.Committed)
	// The second run saw the newer conversation: its version matches, and still it
	// must leave nothing.
	conv, err := s.Conversation(t.Context(), "conv")
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, completion("task-1", conv), millrace.AlreadyCompleted)
	// So must one on the old version: completion is judged before version.
	mustCommit(t, s, first, millrace.AlreadyCompleted)
	for table, want := range map[string]int{"messages": 1, "outbox": 2, "completions": 1} {
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.`+table); n != want {
			t.Errorf("%d rows in %s, want %d", n, table, want)
		}
	}
}

func TestCommitOnAnOldVersionConflicts(t *testing.T) {
	s := newStore(t)
	mustCommit(t, s, completion("task-1", millrace.Conversation{ID: "conv"}), millrace.Committed)
	mustCommit(t, s, completion("task-2", millrace.Conversation{ID: "conv"}), millrace.Conflict)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.completions WHERE task_id = 'task-2'`); n != 0 {
		t.Error("a conflicting turn left a completion")
	}
	conv, err := s.Reload(t.Context(), &millrace.Task{ID: "task-2", Conversation: "conv"})
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, completion("task-2", conv), millrace.Committed)
}

func TestALoserDoesNotFailItsNeighbours(t *testing.T) {
	s := newStore(t)
	mustCommit(t, s, completion("done", millrace.Conversation{ID: "a"}), millrace.Committed)
	bad := completion("refused", millrace.Conversation{ID: "b"})
	bad.Effects.Messages[0].Role = "no\x00role" // text cannot hold it
	batch := []*pendingCommit{
		{completion: completion("done", millrace.Conversation{ID: "a", Version: 1}), done: make(chan commitResult, 1)},
		{completion: bad, done: make(chan commitResult, 1)},
		{completion: completion("late", millrace.Conversation{ID: "a2", Version: 9}), done: make(chan commitResult, 1)},
		{completion: completion("good", millrace.Conversation{ID: "c"}), done: make(chan commitResult, 1)},
	}
	s.commitBatch(t.Context(), batch)
	want := []millrace.Outcome{millrace.AlreadyCompleted, 0, millrace.Conflict, millrace.Committed}
	for i, p := range batch {
		r := <-p.done
		if r.outcome != want[i] {
			t.Errorf("%s: %v, want %v", p.completion.Task.ID, r.outcome, want[i])
		}
		if refused := r.err != nil; refused != (want[i] == 0) {
			t.Errorf("%s: error %v", p.completion.Task.ID, r.err)
		}
		if r.err != nil && millrace.IsUnavailable(r.err) {
			t.Errorf("%s: %v counts as an outage", p.completion.Task.ID, r.err)
		}
	}
}

func TestTenRunsOfATaskOnTwoWorkersLeaveOneSetOfEffects(t *testing.T) {
	pool := newDatabase(t)
	redis := newRedis(t)
	workers := []*Store{run(t, Config{Pool: pool, Redis: redis}), run(t, Config{Pool: pool, Redis: redis})}
	const tasks = 30
	var committed atomic.Int32
	var wg sync.WaitGroup
	for i := range tasks {
		for r := range 10 {
			wg.Go(func() {
				s := workers[r%2]
				task := millrace.Task{ID: fmt.Sprintf("task-%d", i), Conversation: fmt.Sprintf("conv-%d", i%5)}
				conv, err := s.Open(t.Context(), &task)
				for {
					if err != nil {
						t.Error(err)
						return
					}
					outcome, cerr := s.Commit(t.Context(), completion(task.ID, conv))
					if cerr != nil {
						t.Error(cerr)
						return
					}
					if outcome == millrace.Committed {
						committed.Add(1)
					}
					if outcome != millrace.Conflict {
						return
					}
					conv, err = s.Reload(t.Context(), &task)
				}
			})
		}
	}
	wg.Wait()
	if committed.Load() != tasks {
		t.Errorf("%d runs were told that they committed, want %d", committed.Load(), tasks)
	}
	for table, want := range map[string]int{"messages": tasks, "outbox": 2 * tasks, "completions": tasks} {
		if n := count(t, pool, `SELECT count(*) FROM millrace.`+table); n != want {
			t.Errorf("%d rows in %s, want %d", n, table, want)
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM millrace.conversations WHERE version <> length`); n != 0 {
		t.Errorf("%d conversations whose version and length differ", n)
	}
}

// TestCommitSurvivesBackendsThatAreTerminated kills database connections while
// turns commit. Every turn must end up committed once, whatever moment its
// connection was lost in.
func TestCommitSurvivesBackendsThatAreTerminated(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t), BatchSize: 5})
	stop, killed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				killed <- n
				return
			case <-tick.C:
			}
			var k int
			err := pool.QueryRow(context.Background(), `SELECT count(pg_terminate_backend(pid)) FROM (
				SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
				ORDER BY random() LIMIT 1) AS victim`).Scan(&k)
			if err == nil {
				n += k
			}
		}
	}()
	const lanes, turns = 8, 40
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d", lane)}
			for turn := range turns {
				c := completion(fmt.Sprintf("task-%d-%d", lane, turn), conv)
				outcome, err := s.Commit(context.Background(), c)
				for millrace.IsUnavailable(err) {
					outcome, err = s.Commit(context.Background(), c)
				}
				if err != nil || outcome == millrace.Conflict {
					t.Errorf("%s: %v, %v", c.Task.ID, outcome, err)
					return
				}
				conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)
			}
		})
	}
	wg.Wait()
	close(stop)
	t.Logf("%d connections terminated", <-killed)
	for table, want := range map[string]int{"messages": lanes * turns, "outbox": 2 * lanes * turns, "completions": lanes * turns} {
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM millrace.`+table).Scan(&n)
		if err != nil { // the last victim may still be in the pool
			n = count(t, pool, `SELECT count(*) FROM millrace.`+table)
		}
		if n != want {
			t.Errorf("%d rows in %s, want %d", n, table, want)
		}
	}
}

func TestConcurrentBatchesOverTheSameConversationsDoNotDeadlock(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t), Committers: 8, BatchSize: 20})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	var wg sync.WaitGroup
	var conflicts atomic.Int32
	for i := range 400 {
		conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d", rng.IntN(30))}
		wg.Go(func() {
			outcome, err := s.Commit(t.Context(), completion(fmt.Sprintf("task-%d", i), conv))
			if err != nil {
				t.Error(err)
			}
			if outcome == millrace.Conflict {
				conflicts.Add(1)
			}
		})
	}
	wg.Wait()
	n := count(t, pool, `SELECT count(*) FROM millrace.completions`)
	if n+int(conflicts.Load()) != 400 || n > 30 {
		t.Errorf("%d committed and %d conflicted of 400 on version 0 of 30 conversations", n, conflicts.Load())
	}
}

func TestOutboxIdsOfAConversationAscendInCommitOrder(t *testing.T) {
	s := newStore(t)
	conv := millrace.Conversation{ID: "conv"}
	for i := range 20 {
		c := completion(fmt.Sprintf("task-%02d", i), conv)
		mustCommit(t, s, c, millrace.Committed)
		conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)
	}
	rows, err := s.cfg.Pool.Query(t.Context(), `SELECT event_id FROM millrace.outbox WHERE event_type = 'task.completed' ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for i := 0; rows.Next(); i++ {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("task-%02d.result", i); id != want {
			t.Fatalf("event %d is %s, want %s", i, id, want)
		}
	}
}

func TestDeadLetterKeepsItsRecord(t *testing.T) {
	s := newStore(t)
	c := completion("bad", millrace.Conversation{})
	c.Task.Conversation, c.Effects, c.Status = "", millrace.Effects{}, millrace.StatusFailed
	c.DeadLetter = &millrace.DeadLetter{
		Reason: millrace.ReasonInvalidHeader, Detail: "broken \xff\x00 text",
		Record: millrace.Record{
			Topic: "tasks.high", Partition: 3, Offset: 42, Key: []byte{0, 1}, Value: []byte{0xff, 0},
			Headers: []millrace.Header{{Key: "h", Value: []byte{0xfe}}},
		},
	}
	mustCommit(t, s, c, millrace.Committed)
	entries, err := s.DeadLetters(t.Context(), 0, 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("dead letters %v, %v", entries, err)
	}
	if e := entries[0]; e.Reason != millrace.ReasonInvalidHeader || e.Topic != "tasks.high" || e.Partition != 3 || e.Offset != 42 {
		t.Errorf("entry %+v", e)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.dead_letters WHERE value = '\xff00' AND key = '\x0001'`); n != 1 {
		t.Error("the record's bytes are not there")
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox WHERE topic = 'dlq' AND data = '\xff00'`); n != 1 {
		t.Error("no copy for the dead-letter topic")
	}
}

func TestWithoutResultsATurnWithoutEffectsWritesNothing(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t), DropResults: true})
	c := completion("quiet", millrace.Conversation{ID: "conv"})
	c.Effects = millrace.Effects{}
	mustCommit(t, s, c, millrace.Committed)
	mustCommit(t, s, completion("loud", millrace.Conversation{ID: "conv"}), millrace.Committed)
	if n := count(t, pool, `SELECT count(*) FROM millrace.completions`); n != 1 {
		t.Errorf("%d completions, want that of the turn with effects", n)
	}
	if n := count(t, pool, `SELECT count(*) FROM millrace.outbox`); n != 1 {
		t.Errorf("%d outbox rows, want the event alone", n)
	}
}

func TestCommitAfterStopIsAnOutage(t *testing.T) {
	s, err := New(Config{Pool: newDatabase(t), Redis: newRedis(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), completion("x", millrace.Conversation{ID: "c"})); !millrace.IsUnavailable(err) || !errors.Is(err, errStopped) {
		t.Errorf("commit after stop: %v", err)
	}
}
