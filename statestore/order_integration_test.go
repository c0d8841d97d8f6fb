//go:build integration

package statestore

import (
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/outbox"
)

// TestEventsUnderAKeyOfTheirOwnKeepCommitOrder lets somebody's transaction append
// under a key and stay open while a turn emits under the same key.
func TestEventsUnderAKeyOfTheirOwnKeepCommitOrder(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if err := outbox.Append(t.Context(), tx, outbox.Message{ID: "first", Type: "t", Key: "shared"}); err != nil {
		t.Fatal(err)
	}
	// Nobody else is in the way of a turn with other keys.
	mustCommit(t, s, completion("other", millrace.Conversation{ID: "other"}), millrace.Committed)
	c := completion("task", millrace.Conversation{ID: "conv"})
	c.Effects.Events[0].Key = "shared"
	done := make(chan error, 1)
	go func() {
		_, err := s.Commit(t.Context(), c)
		done <- err
	}()
	awaitBlocked(t, pool, 1)
	if err := outbox.Append(t.Context(), tx, outbox.Message{ID: "second", Type: "t", Key: "shared"}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	rows, err := pool.Query(t.Context(), `SELECT event_id FROM millrace.outbox WHERE key = 'shared' ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if want := []string{"first", "second", "task.event0"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

func TestEventsOfOneTurnKeepTheirOrderAndTheResultComesLast(t *testing.T) {
	s := newStore(t)
	c := completion("task", millrace.Conversation{ID: "conv"})
	c.Effects.Events = nil
	var want []string
	for i := range 50 {
		c.Effects.Events = append(c.Effects.Events, millrace.Event{Type: "e", Data: []byte("1")})
		want = append(want, millrace.EventID(c.Task.Key(), i))
	}
	c.DeadLetter = &millrace.DeadLetter{Reason: "x"}
	c.Status = millrace.StatusFailed
	mustCommit(t, s, c, millrace.Committed)
	want = append(want, "task.deadletter", "task.result")
	rows, err := s.cfg.Pool.Query(t.Context(), `SELECT event_id FROM millrace.outbox ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTheRelayIsToldOfEveryShardWrittenTo(t *testing.T) {
	var (
		mu   sync.Mutex
		told []int
	)
	s := run(t, Config{Pool: newDatabase(t), Redis: newRedis(t), Published: func(shards ...int) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, shards...)
	}})
	c := completion("task", millrace.Conversation{ID: "conv"})
	for _, key := range []string{"a", "b", "c", "d", "e"} {
		c.Effects.Events = append(c.Effects.Events, millrace.Event{Type: "e", Key: key, Data: []byte("1")})
	}
	mustCommit(t, s, c, millrace.Committed)
	rows, err := s.cfg.Pool.Query(t.Context(), `SELECT DISTINCT shard FROM millrace.outbox ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	want, err := pgx.CollectRows(rows, pgx.RowTo[int])
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(told)
	if err != nil || len(want) < 2 || !slices.Equal(told, want) {
		t.Errorf("told of %v, written to %v, %v", told, want, err)
	}
}

// TestTheHotCopyIsWhatPostgresHas to the letter: what a turn makes of it, and
// with it the hash of a step's request, must not depend on where it came from.
func TestTheHotCopyIsWhatPostgresHas(t *testing.T) {
	s := newStore(t)
	for _, state := range []string{`{ "html": "<b>&", "n": 1.0 }`, `null`, `"text"`, "{\"u\":\"\\u0000\u2028\"}"} {
		id := "conv " + state
		c := completion("task "+newID(), millrace.Conversation{ID: id})
		c.Effects.State = []byte(state)
		c.FinishedAt = time.Now().In(time.FixedZone("far", 5*3600)).Add(123)
		mustCommit(t, s, c, millrace.Committed)
		hot, err := s.Open(t.Context(), &millrace.Task{ID: "next", Conversation: id})
		if err != nil {
			t.Fatal(err)
		}
		durable, err := s.Conversation(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if string(hot.State) != state || !reflect.DeepEqual(hot, durable) {
			t.Errorf("state %s: redis %+v, postgres %+v", state, hot, durable)
		}
	}
}

func TestAQuietTurnIsNotSaidToBeRunning(t *testing.T) {
	s := run(t, Config{Pool: newDatabase(t), Redis: newRedis(t), DropResults: true})
	c := completion("quiet", millrace.Conversation{ID: "conv"})
	c.Effects = millrace.Effects{}
	if _, err := s.Open(t.Context(), &c.Task); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, c, millrace.Committed)
	if r, err := s.Task(t.Context(), "quiet"); err == nil {
		t.Errorf("task %+v", r)
	}
}
