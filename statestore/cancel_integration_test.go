//go:build integration

package statestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

// heard collects what WatchCancels tells.
type heard struct {
	mu   sync.Mutex
	all  []millrace.Cancel
	news chan struct{}
}

func listen(t *testing.T, s *Store) *heard {
	t.Helper()
	h := &heard{news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.WatchCancels(ctx, func(cancels []millrace.Cancel) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.all = append(h.all, cancels...)
			select {
			case h.news <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch cancels: %v", err)
		}
	})
	return h
}

func (h *heard) await(t *testing.T, want millrace.Cancel) {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		h.mu.Lock()
		for _, c := range h.all {
			if c == want {
				h.mu.Unlock()
				return
			}
		}
		h.mu.Unlock()
		select {
		case <-h.news:
		case <-limit:
			t.Fatalf("heard %v, want %v", h.all, want)
		}
	}
}

func TestCancelIsACompletionThatKeepsTheTurnFromCommitting(t *testing.T) {
	s := newStore(t)
	early := listen(t, s)
	conv, id := newID(), newID()
	if err := s.Queued(t.Context(), []millrace.Task{{ID: id, Conversation: conv}}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Cancel(t.Context(), id, false)
	if err != nil || got.Status != millrace.StatusCancelled || got.ConversationID != conv {
		t.Fatalf("cancel: %+v, %v", got, err)
	}
	mustCommit(t, s, completion(id, millrace.Conversation{ID: conv}), millrace.AlreadyCompleted)
	for table, want := range map[string]int{"messages": 0, "dead_letters": 0, "completions": 1, "outbox": 1} {
		if n := count(t, s.cfg.Pool, "SELECT count(*) FROM millrace."+table); n != want {
			t.Errorf("%d rows in %s, want %d", n, table, want)
		}
	}
	if n := count(t, s.cfg.Pool, `SELECT version FROM millrace.conversations WHERE id = $1`, conv); n != 0 {
		t.Errorf("the conversation is at version %d", n)
	}
	var (
		eventType, eventID string
		key, data          []byte
	)
	if err := s.cfg.Pool.QueryRow(t.Context(), `SELECT event_type, event_id, key, data FROM millrace.outbox`).Scan(&eventType, &eventID, &key, &data); err != nil {
		t.Fatal(err)
	}
	var result millrace.TaskResult
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	if eventType != "task.cancelled" || eventID != id+".result" || string(key) != conv || result.Status != millrace.StatusCancelled {
		t.Errorf("event %s %s of key %s: %s", eventType, eventID, key, data)
	}
	if r, err := s.Task(t.Context(), id); err != nil || r.Status != millrace.StatusCancelled {
		t.Errorf("the task is %+v, %v", r, err)
	}
	want := millrace.Cancel{Key: millrace.Key{ID: id}, Conversation: conv}
	early.await(t, want)
	listen(t, s).await(t, want) // who comes later hears of it as well
	if again, err := s.Cancel(t.Context(), id, false); err != nil || again.Status != millrace.StatusCancelled {
		t.Errorf("cancel again: %+v, %v", again, err)
	}
	if n := count(t, s.cfg.Pool, "SELECT count(*) FROM millrace.outbox"); n != 1 {
		t.Errorf("%d events after the second cancel", n)
	}
}

func TestCancelOfATaskThatIsDoneSaysHowItEnded(t *testing.T) {
	s := newStore(t)
	id := newID()
	mustCommit(t, s, completion(id, millrace.Conversation{ID: newID()}), millrace.Committed)
	if got, err := s.Cancel(t.Context(), id, true); err != nil || got.Status != millrace.StatusCompleted || string(got.Result) != `"done"` {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCancelOfATaskThatNothingIsKnownOf(t *testing.T) {
	s := newStore(t)
	id := newID()
	if _, err := s.Cancel(t.Context(), id, false); !errors.Is(err, millrace.ErrNotFound) {
		t.Fatalf("error %v, want not found", err)
	}
	if n := count(t, s.cfg.Pool, "SELECT count(*) FROM millrace.completions"); n != 0 {
		t.Fatalf("%d completions of a task that nobody has seen", n)
	}
	if got, err := s.Cancel(t.Context(), id, true); err != nil || got.Status != millrace.StatusCancelled {
		t.Fatalf("%+v, %v", got, err)
	}
	// The task comes after its cancel.
	mustCommit(t, s, completion(id, millrace.Conversation{ID: newID()}), millrace.AlreadyCompleted)
}

// The run that is on its way is cancelled, not the one that made the dead letter.
func TestCancelOfARedriveLeavesTheRunBefore(t *testing.T) {
	s := newStore(t)
	id, conv := newID(), millrace.Conversation{ID: newID()}
	failed := completion(id, conv)
	failed.Status, failed.Effects = millrace.StatusFailed, millrace.Effects{}
	failed.DeadLetter = &millrace.DeadLetter{Reason: millrace.ReasonPermanent, Record: millrace.Record{Topic: "tasks", Value: []byte("x")}}
	mustCommit(t, s, failed, millrace.Committed)
	if got, err := s.Cancel(t.Context(), id, false); err != nil || got.Status != millrace.StatusFailed {
		t.Fatalf("before the redrive: %+v, %v", got, err)
	}
	if _, err := s.cfg.Pool.Exec(t.Context(), `UPDATE millrace.dead_letters SET redriven_at = now(), redriven_as = 1 WHERE task_id = $1`, id); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Cancel(t.Context(), id, false); err != nil || got.Status != millrace.StatusCancelled {
		t.Fatalf("during the redrive: %+v, %v", got, err)
	}
	again := completion(id, conv)
	again.Task.Redrive = 1
	mustCommit(t, s, again, millrace.AlreadyCompleted)
}

// Cancels and turns commit at once: each task has one end, and a conversation
// holds the messages of those that completed.
func TestCancelsRaceWithCommits(t *testing.T) {
	s := newStore(t)
	const tasks = 60
	var (
		group              sync.WaitGroup
		mu                 sync.Mutex
		completed, stopped int
	)
	for range tasks {
		id, conv := newID(), millrace.Conversation{ID: newID()}
		group.Go(func() {
			outcome, err := s.Commit(t.Context(), completion(id, conv))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if outcome == millrace.Committed {
				completed++
			}
		})
		group.Go(func() {
			got, err := s.Cancel(t.Context(), id, true)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if got.Status == millrace.StatusCancelled {
				stopped++
			}
		})
	}
	group.Wait()
	if completed+stopped != tasks {
		t.Errorf("%d completed and %d cancelled of %d", completed, stopped, tasks)
	}
	if n := count(t, s.cfg.Pool, "SELECT count(*) FROM millrace.messages"); n != completed {
		t.Errorf("%d messages of %d completed tasks", n, completed)
	}
	t.Logf("%d completed, %d cancelled", completed, stopped)
}

func TestCancelStandsWithoutRedis(t *testing.T) {
	gone := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: 100 * time.Millisecond})
	t.Cleanup(func() { _ = gone.Close() })
	s := run(t, Config{Pool: newDatabase(t), Redis: gone, RunDegraded: true})
	id := newID()
	if got, err := s.Cancel(t.Context(), id, true); err != nil || got.Status != millrace.StatusCancelled {
		t.Fatalf("%+v, %v", got, err)
	}
	mustCommit(t, s, completion(id, millrace.Conversation{ID: newID()}), millrace.AlreadyCompleted)
}

func TestListOfCancelsIsBoundedAndSkipsWhatIsNone(t *testing.T) {
	s := newStore(t)
	old := float64(time.Now().Add(-toldFor - time.Minute).UnixMilli())
	members := []redis.Z{{Score: old, Member: `{"i":"old"}`}, {Score: float64(time.Now().UnixMilli()), Member: "no JSON"}}
	for n := range maxTold {
		members = append(members, redis.Z{Score: float64(time.Now().UnixMilli()), Member: fmt.Sprintf(`{"i":"%d"}`, n)})
	}
	if err := s.cfg.Redis.ZAdd(t.Context(), s.cancels(), members...).Err(); err != nil {
		t.Fatal(err)
	}
	newest := millrace.Cancel{Key: millrace.Key{ID: newID(), Redrive: 2}, Conversation: "c"}
	s.tellCancel(t.Context(), newest)
	if n := s.cfg.Redis.ZCard(t.Context(), s.cancels()).Val(); n != maxTold {
		t.Errorf("%d cancels in the list, want %d", n, maxTold)
	}
	h := listen(t, s)
	h.await(t, newest)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.all {
		if c.Key.ID == "old" || c.Key.ID == "" {
			t.Errorf("told of %+v", c)
		}
	}
}
