package consumer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// appendTask is a handler that leaves the task's id in the history.
func appendTask(_ context.Context, turn *millrace.Turn) error {
	return turn.Append(millrace.Message{Role: millrace.RoleUser, Content: turn.Task().ID})
}

func TestConversationsRunOneTurnAtATimeAndInOrder(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	const conversations, turns = 20, 30
	var (
		running  [conversations]atomic.Int32
		parallel atomic.Int32
		busiest  atomic.Int32
	)
	var tasks []millrace.Task
	for n := range turns {
		for c := range conversations {
			tasks = append(tasks, task(fmt.Sprintf("c%d", c), n, millrace.Normal))
		}
	}
	b.send(t, tasks...)
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		var c int
		if _, err := fmt.Sscanf(turn.Task().Conversation, "c%d", &c); err != nil {
			return err
		}
		if running[c].Add(1) != 1 {
			t.Errorf("two turns of c%d at once", c)
		}
		defer running[c].Add(-1)
		now := parallel.Add(1)
		defer parallel.Add(-1)
		for {
			seen := busiest.Load()
			if now <= seen || busiest.CompareAndSwap(seen, now) {
				break
			}
		}
		waitFor(ctx, time.Millisecond)
		return appendTask(ctx, turn)
	}, nil)

	next := make(map[string]int)
	for _, c := range store.await(t, conversations*turns) {
		conv := c.Task.Conversation
		if want := task(conv, next[conv], millrace.Normal).ID; c.Task.ID != want {
			t.Fatalf("%s: completed %s, want %s", conv, c.Task.ID, want)
		}
		next[conv]++
	}
	if busiest.Load() < 4 {
		t.Errorf("at most %d turns ran at once; conversations should run side by side", busiest.Load())
	}
}

func waitFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func TestHigherPriorityOvertakesWithinAConversationButNeverOverlaps(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	started, release := make(chan string, 10), make(chan struct{})
	b.send(t, task("c", 0, millrace.Batch))
	engine, _ := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		started <- turn.Task().ID
		if turn.Task().ID == "c/batch/0" {
			<-release
		}
		return appendTask(ctx, turn)
	}, nil)
	<-started
	b.send(t, task("c", 1, millrace.Batch), task("c", 0, millrace.High))
	eventually(t, "both tasks wait behind the running one", func() bool { return engine.waitingIn("c") == 2 })
	close(release)
	if got, want := ids(store.await(t, 3)), "[c/batch/0 c/high/0 c/batch/1]"; got != want {
		t.Errorf("order %v, want %v", got, want)
	}
}

func ids(completions []millrace.Completion) string {
	var out []string
	for _, c := range completions {
		out = append(out, c.Task.ID)
	}
	return fmt.Sprint(out)
}

func TestRetryHoldsTheLaneAndNotItsNeighbours(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	var failures atomic.Int32
	released := make(chan struct{})
	b.send(t, task("bad", 0, millrace.Normal), task("bad", 1, millrace.Normal), task("good", 0, millrace.Normal))
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().ID == "bad/normal/0" && failures.Add(1) < 4 {
			return errors.New("not yet")
		}
		if turn.Task().Conversation == "good" {
			close(released)
		}
		return appendTask(ctx, turn)
	}, nil)
	<-released
	var bad []string
	for _, c := range store.await(t, 3) {
		if c.Task.Conversation == "bad" {
			bad = append(bad, fmt.Sprintf("%s after %d", c.Task.ID, c.Attempts))
		}
	}
	if want := "[bad/normal/0 after 4 bad/normal/1 after 1]"; fmt.Sprint(bad) != want {
		t.Errorf("got %v, want %v", bad, want)
	}
}

func TestGivenUpTasksBecomeDeadLettersWithTheirReason(t *testing.T) {
	for _, tt := range []struct {
		name     string
		change   func(*millrace.Task)
		handler  func(attempt int) error
		reason   string
		attempts int
	}{
		{"attempts spent", nil, func(int) error { return errors.New("never") }, millrace.ReasonAttemptsExhausted, 5},
		{"its own limit", func(t *millrace.Task) { t.MaxAttempts = 2 }, func(int) error { return errors.New("never") }, millrace.ReasonAttemptsExhausted, 2},
		{"permanent", nil, func(int) error { return millrace.Permanent(errors.New("bad input")) }, millrace.ReasonPermanent, 1},
		{"panic", nil, func(int) error { panic("boom") }, millrace.ReasonAttemptsExhausted, 5},
		{"too late", func(t *millrace.Task) { t.Deadline = time.Now().Add(-time.Second) }, func(int) error { return nil }, millrace.ReasonDeadlineExceeded, 0},
		{"retry after", nil, func(attempt int) error {
			return millrace.RetryAfter(time.Millisecond, fmt.Errorf("attempt %d", attempt))
		}, millrace.ReasonAttemptsExhausted, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, store := newBroker(t), newMemoryStore()
			bad := task("c", 0, millrace.Normal)
			if tt.change != nil {
				tt.change(&bad)
			}
			b.send(t, bad, task("c", 1, millrace.Normal))
			b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
				if turn.Task().ID == bad.ID {
					if err := turn.Append(millrace.Message{Role: millrace.RoleUser, Content: "must not be kept"}); err != nil {
						return err
					}
					return tt.handler(turn.Attempt())
				}
				return appendTask(ctx, turn)
			}, nil)
			done := store.await(t, 2)
			got := done[0]
			if got.Task.ID != bad.ID || got.Status != millrace.StatusFailed || got.DeadLetter == nil {
				t.Fatalf("first completion %+v, want the failed task with a dead letter", got)
			}
			if got.DeadLetter.Reason != tt.reason || got.Attempts != tt.attempts {
				t.Errorf("reason %s after %d attempts, want %s after %d", got.DeadLetter.Reason, got.Attempts, tt.reason, tt.attempts)
			}
			if !got.Effects.Empty() {
				t.Errorf("a failed turn left effects: %+v", got.Effects)
			}
			if string(got.DeadLetter.Record.Value) != "0" || got.DeadLetter.Record.Topic != "t.tasks.normal" {
				t.Errorf("the dead letter lost its record: %+v", got.DeadLetter.Record)
			}
			if tt.name == "panic" && !strings.Contains(got.DeadLetter.Stack, "engine_test.go") {
				t.Errorf("no stack of the panic: %q", got.DeadLetter.Stack)
			}
			if done[1].Status != millrace.StatusCompleted {
				t.Errorf("the next task of the conversation: %s", done[1].Status)
			}
		})
	}
}

func TestRecordsThatAreNoTasksDoNotStopTheirPartition(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	header := func(k, v string) []kgo.RecordHeader { return []kgo.RecordHeader{{Key: k, Value: []byte(v)}} }
	bad := map[string]*kgo.Record{
		millrace.ReasonNullValue:     {Value: nil},
		millrace.ReasonInvalidHeader: {Value: []byte("x"), Headers: header("ce_maxattempts", "many")},
		millrace.ReasonInvalidJSON:   {Value: []byte("{"), Headers: header("content-type", "application/json")},
		millrace.ReasonInvalidKey:    {Value: []byte("x"), Key: []byte{0xff}},
	}
	for _, r := range bad {
		r.Topic = "t.tasks.normal"
		if r.Key == nil {
			r.Key = []byte("c")
		}
		b.sendRaw(t, r)
	}
	good := task("c", 0, millrace.Normal)
	b.send(t, good)
	b.start(t, store, appendTask, nil)
	for _, c := range store.await(t, len(bad)+1) {
		if c.DeadLetter == nil {
			if c.Task.ID != good.ID {
				t.Errorf("unexpected completion of %s", c.Task.ID)
			}
			continue
		}
		if bad[c.DeadLetter.Reason] == nil {
			t.Errorf("unexpected dead letter %+v", c.DeadLetter)
		}
		delete(bad, c.DeadLetter.Reason)
	}
	if len(bad) > 0 {
		t.Errorf("no dead letter for %v", bad)
	}
}

func TestBareRecordIsATask(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	b.sendRaw(t, &kgo.Record{Topic: "t.tasks.high", Key: []byte("c1"), Value: []byte(`{"text":"hi"}`)})
	b.start(t, store, appendTask, nil)
	got := store.await(t, 1)[0].Task
	if got.Conversation != "c1" || got.Type != millrace.DefaultType || got.Priority != millrace.High || len(got.ID) != 36 {
		t.Errorf("task %+v", got)
	}
}

func TestOutagesBurnNoAttempt(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	var tries atomic.Int32
	b.send(t, task("c", 0, millrace.Normal))
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if tries.Add(1) <= 3 {
			return millrace.Unavailable(errors.New("redis is out"))
		}
		if turn.Attempt() != 1 {
			t.Errorf("attempt %d after outages, want 1", turn.Attempt())
		}
		return appendTask(ctx, turn)
	}, func(c *Config) { c.MaxAttempts = 1 })
	if got := store.await(t, 1)[0]; got.Status != millrace.StatusCompleted {
		t.Errorf("status %s", got.Status)
	}
}

func TestCommitOfUnknownOutcomeIsSettledWithoutRunningTwice(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	var runs, commits atomic.Int32
	store.fail = func(c millrace.Completion) error {
		if commits.Add(1) == 1 {
			// The connection broke after the server had committed.
			store.completions[c.Task.Key()] = c
			store.order = append(store.order, c)
			return millrace.Unavailable(errors.New("connection lost"))
		}
		return nil
	}
	b.send(t, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		runs.Add(1)
		return appendTask(ctx, turn)
	}, nil)
	if got, want := ids(store.await(t, 2)), "[c/normal/0 c/normal/1]"; got != want {
		t.Errorf("completions %s, want %s", got, want)
	}
	if runs.Load() != 2 {
		t.Errorf("%d runs, want 2", runs.Load())
	}
}

func TestEffectsThatTheStoreRefusesBecomeADeadLetter(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	store.fail = func(c millrace.Completion) error {
		if len(c.Effects.Messages) > 0 {
			return errors.New("value out of range")
		}
		return nil
	}
	b.send(t, task("c", 0, millrace.Normal))
	b.start(t, store, appendTask, nil)
	if got := store.await(t, 1)[0]; got.DeadLetter == nil || got.DeadLetter.Reason != millrace.ReasonEffectsRefused {
		t.Errorf("completion %+v, want a dead letter for refused effects", got)
	}
}

func TestConflictRunsTheTurnAnewOnTheNewerConversation(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	var once sync.Once
	b.send(t, task("c", 0, millrace.Normal))
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		once.Do(func() { // somebody else commits meanwhile
			store.mu.Lock()
			defer store.mu.Unlock()
			store.convs["c"] = millrace.Conversation{ID: "c", Version: 7}
		})
		return appendTask(ctx, turn)
	}, nil)
	if got := store.await(t, 1)[0]; got.Base.Version != 7 || got.Attempts != 1 {
		t.Errorf("committed on version %d after %d attempts, want 7 after 1", got.Base.Version, got.Attempts)
	}
}

func TestFinishedTasksAreNotRunAgainAfterARestart(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	var runs atomic.Int32
	count := func(ctx context.Context, turn *millrace.Turn) error {
		runs.Add(1)
		return appendTask(ctx, turn)
	}
	for n := range 20 {
		b.send(t, task(fmt.Sprintf("c%d", n), 0, millrace.Normal))
	}
	_, stop := b.start(t, store, count, nil)
	store.await(t, 20)
	stop()
	// Another group stands for one whose commits were lost: it reads all again.
	b.send(t, task("last", 0, millrace.Normal))
	b.start(t, store, count, func(c *Config) { c.Pool = "again" })
	store.await(t, 21)
	if runs.Load() != 21 {
		t.Errorf("%d runs of 21 tasks", runs.Load())
	}
}

func TestRestartGoesOnWhereTheGroupCommitted(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	for n := range 20 {
		b.send(t, task(fmt.Sprintf("c%d", n), 0, millrace.Normal))
	}
	_, stop := b.start(t, store, appendTask, nil)
	store.await(t, 20)
	stop()
	// Without the completions, only the committed offsets keep the tasks from
	// running again.
	fresh := newMemoryStore()
	b.send(t, task("new", 0, millrace.Normal))
	b.start(t, fresh, appendTask, nil)
	if got, want := ids(fresh.await(t, 1)), "[new/normal/0]"; got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
}

func TestWorkersJoinAndLeaveWithoutLossOrOverlap(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	const conversations, turns = 24, 25
	var running sync.Map
	handler := func(ctx context.Context, turn *millrace.Turn) error {
		conv := turn.Task().Conversation
		if _, busy := running.LoadOrStore(conv, true); busy {
			t.Errorf("two turns of %s at once", conv)
		}
		defer running.Delete(conv)
		waitFor(ctx, 2*time.Millisecond)
		return appendTask(ctx, turn)
	}
	_, stopFirst := b.start(t, store, handler, nil)
	var tasks []millrace.Task
	for n := range turns {
		for c := range conversations {
			tasks = append(tasks, task(fmt.Sprintf("c%d", c), n, millrace.DefaultPriorities()[c%3]))
		}
	}
	third := len(tasks) / 3
	b.send(t, tasks[:third]...)
	store.await(t, third/2)
	b.start(t, store, handler, nil)
	b.send(t, tasks[third:2*third]...)
	store.await(t, third+third/2)
	stopFirst()
	b.send(t, tasks[2*third:]...)

	next := make(map[string]int)
	for _, c := range store.await(t, conversations*turns) {
		conv := c.Task.Conversation
		if want := task(conv, next[conv], c.Task.Priority).ID; c.Task.ID != want {
			t.Fatalf("%s: completed %s, want %s", conv, c.Task.ID, want)
		}
		next[conv]++
	}
}

func TestStopLetsRunningTurnsFinish(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	started, release := make(chan struct{}), make(chan struct{})
	b.send(t, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
	_, stop := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		close(started)
		<-release
		return appendTask(ctx, turn)
	}, nil)
	<-started
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	close(release)
	<-stopped
	if got, want := ids(store.await(t, 1)), "[c/normal/0]"; got != want {
		t.Errorf("completed %s, want only the running turn", got)
	}
}

func TestStopCancelsTurnsAtTheDrainLimitWithoutBurningAnAttempt(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	started := make(chan struct{})
	b.send(t, task("c", 0, millrace.Normal))
	_, stop := b.start(t, store, func(ctx context.Context, _ *millrace.Turn) error {
		close(started)
		<-ctx.Done()
		return ctx.Err()
	}, func(c *Config) { c.DrainTimeout = 10 * time.Millisecond; c.MaxAttempts = 1 })
	<-started
	stop()
	b.start(t, store, appendTask, func(c *Config) { c.MaxAttempts = 1 })
	if got := store.await(t, 1)[0]; got.Status != millrace.StatusCompleted || got.Attempts != 1 {
		t.Errorf("%s after %d attempts, want completed after 1", got.Status, got.Attempts)
	}
}

func TestIntakeIsBoundedAndGoesOn(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	const n = 400
	release := make(chan struct{})
	var tasks []millrace.Task
	for i := range n {
		tk := task("c", i, millrace.Normal)
		tk.Payload = make([]byte, 2000)
		tasks = append(tasks, tk)
	}
	engine, _ := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		<-release
		return appendTask(ctx, turn)
	}, func(c *Config) { c.IntakeBytes = 50_000 })
	for i := range n {
		b.send(t, tasks[i])
	}
	eventually(t, "intake is paused", func() bool {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		for _, p := range engine.parts {
			if p.paused {
				return true
			}
		}
		return false
	})
	close(release)
	store.await(t, n)
}

func TestConfigReportsAllThatIsWrong(t *testing.T) {
	_, err := New(Config{Priorities: []millrace.Priority{"Up"}, Slots: -1, MaxAttempts: 1000})
	for _, want := range []string{"Kafka", "Handler", "Store", "Slots", "MaxAttempts", "Up"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}
