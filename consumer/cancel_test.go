package consumer

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace"
)

// cancel commits the cancel of a task, as the API does.
func (s *memoryStore) cancel(t *testing.T, task millrace.Task) millrace.Outcome {
	t.Helper()
	outcome, err := s.Commit(t.Context(), millrace.Completion{Task: task, Status: millrace.StatusCancelled, FinishedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return outcome
}

func cancelOf(task millrace.Task) []millrace.Cancel {
	return []millrace.Cancel{{Key: task.Key(), Conversation: task.Conversation}}
}

// hearing starts what ends the turns of cancelled tasks.
func (o *offline) hearing(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	loops.Go(func() { o.rumourLoop(ctx) })
	t.Cleanup(func() {
		cancel()
		loops.Wait()
	})
}

func TestCancelledTaskThatWaitsNeverRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, g.handle, nil)
		o.hearing(t)
		o.assign(0)
		first, second, third := task("c", 0, millrace.Normal), task("c", 1, millrace.Normal), task("c", 2, millrace.Normal)
		o.feed(t, 0, first, second)
		synctest.Wait()
		store.cancel(t, second)
		store.cancel(t, third)
		// The third is cancelled before it is read.
		o.hear(append(cancelOf(second), cancelOf(third)...))
		o.feed(t, 0, third)
		g.release("c/normal/0")
		synctest.Wait()
		if got := g.ran(); got != "[c/normal/0]" {
			t.Errorf("ran %s", got)
		}
		if got := o.part(millrace.Normal, 0).tracker.next; got != 3 {
			t.Errorf("offset %d is the lowest that is not done, want 3", got)
		}
	})
}

func TestCancelledTaskDoesNotHoldItsConversationUntilItsRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/0" {
				return millrace.RetryAfter(time.Hour, errors.New("later"))
			}
			return appendTask(ctx, turn)
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
		synctest.Wait()
		store.cancel(t, task("c", 0, millrace.Normal))
		o.hear(cancelOf(task("c", 0, millrace.Normal)))
		synctest.Wait()
		if got := ids(store.await(t, 2)); got != "[c/normal/0 c/normal/1]" {
			t.Errorf("completed %s at once", got)
		}
	})
}

func TestCancelEndsARunningTurnAndDropsItsEffects(t *testing.T) {
	for _, tt := range []struct {
		name string
		ret  func(ctx context.Context) error
	}{
		{"handler returns its context's error", func(ctx context.Context) error { return ctx.Err() }},
		{"handler returns nil", func(context.Context) error { return nil }},
		{"handler returns a permanent error", func(context.Context) error { return millrace.Permanent(errors.New("no")) }},
		{"handler returns an outage", func(context.Context) error { return millrace.Unavailable(errors.New("out")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemoryStore()
				var cause error
				o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().ID != "c/normal/0" {
						return nil
					}
					if err := appendTask(ctx, turn); err != nil {
						return err
					}
					<-ctx.Done()
					cause = context.Cause(ctx)
					return tt.ret(ctx)
				}, nil)
				o.hearing(t)
				o.assign(0)
				o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
				synctest.Wait()
				store.cancel(t, task("c", 0, millrace.Normal))
				began := time.Now()
				o.hear(cancelOf(task("c", 0, millrace.Normal)))
				all := store.await(t, 2)
				if time.Since(began) > time.Second || !errors.Is(cause, millrace.ErrCancelled) {
					t.Errorf("ended after %s because of %v", time.Since(began), cause)
				}
				if got := ids(all); got != "[c/normal/0 c/normal/1]" || all[0].Status != millrace.StatusCancelled || store.convs["c"].Version != 0 {
					t.Errorf("completed %s, the first as %s, conversation at version %d", got, all[0].Status, store.convs["c"].Version)
				}
				if n := testutil.ToFloat64(o.metrics.turns.WithLabelValues("normal", "cancelled")); n != 1 {
					t.Errorf("%v cancelled turns counted", n)
				}
			})
		})
	}
}

func TestFalseRumourOfACancelEndsNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, g.handle, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
		synctest.Wait()
		o.hear(append(cancelOf(task("c", 0, millrace.Normal)), cancelOf(task("c", 1, millrace.Normal))...))
		synctest.Wait()
		g.release("c/normal/0", "c/normal/1")
		for _, c := range store.await(t, 2) {
			if c.Status != millrace.StatusCompleted {
				t.Errorf("%s: %s", c.Task.ID, c.Status)
			}
		}
	})
}

// The cancel commits while the turn's own commit is under way: the turn finds
// the task completed, and the conversation stays as it was.
func TestCancelThatCommitsBeforeTheTurnWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			return errors.Join(appendTask(ctx, turn), g.handle(ctx, turn))
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		if got := store.cancel(t, task("c", 0, millrace.Normal)); got != millrace.Committed {
			t.Fatalf("cancel: %s", got)
		}
		g.release("c/normal/0") // nobody has told this worker
		synctest.Wait()
		if c := store.completions[millrace.Key{ID: "c/normal/0"}]; c.Status != millrace.StatusCancelled || store.convs["c"].Version != 0 {
			t.Errorf("status %s, conversation at version %d", c.Status, store.convs["c"].Version)
		}
		if got := store.cancel(t, task("c", 0, millrace.Normal)); got != millrace.AlreadyCompleted {
			t.Errorf("second cancel: %s", got)
		}
	})
}

// The rumour comes between the moment that a turn gets its slot and the moment
// that its handler gets a context.
func TestCancelThatIsHeardBeforeTheHandlerHasItsContextEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		opening, opened := make(chan struct{}), make(chan struct{})
		slow := &slowOpen{memoryStore: store, opening: opening, opened: opened}
		ran := false
		o := newOffline(t, slow, func(context.Context, *millrace.Turn) error {
			ran = true
			return nil
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		<-opening
		store.cancel(t, task("c", 0, millrace.Normal))
		o.hear(cancelOf(task("c", 0, millrace.Normal)))
		synctest.Wait()
		close(opened)
		synctest.Wait()
		if ran {
			t.Error("the handler of a cancelled task ran")
		}
		if got := o.part(millrace.Normal, 0).tracker.next; got != 1 {
			t.Errorf("offset %d is the lowest that is not done, want 1", got)
		}
	})
}

type slowOpen struct {
	*memoryStore
	opening, opened chan struct{}
}

func (s *slowOpen) Open(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	close(s.opening)
	<-s.opened
	return s.memoryStore.Open(ctx, task)
}

func TestCancelIsActedOnOnceTheStoreAnswersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flakyLookUps{memoryStore: newMemoryStore(), failures: 3}
		o := newOffline(t, store, func(ctx context.Context, _ *millrace.Turn) error {
			<-ctx.Done()
			return ctx.Err()
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		store.cancel(t, task("c", 0, millrace.Normal))
		o.hear(cancelOf(task("c", 0, millrace.Normal)))
		<-time.After(30 * time.Second)
		synctest.Wait()
		if got := o.part(millrace.Normal, 0).tracker.next; got != 1 {
			t.Error("the turn still runs")
		}
	})
}

type flakyLookUps struct {
	*memoryStore
	failures int
}

func (s *flakyLookUps) Completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	if s.failures > 0 {
		s.failures--
		return nil, millrace.Unavailable(errors.New("out"))
	}
	return s.memoryStore.Completed(ctx, keys)
}

func TestEngineListensForCancelsAgainAfterItHasLostThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := &losingCancels{}
		o := newOffline(t, newMemoryStore(), newGate().handle, func(c *Config) { c.Cancels = lost })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.hearCancels(ctx)
		}()
		<-time.After(time.Minute)
		cancel()
		<-done
		if lost.calls < 3 || !o.cancels.has(millrace.Key{ID: "x"}) {
			t.Errorf("%d calls, heard: %v", lost.calls, o.cancels.keys)
		}
	})
}

type losingCancels struct{ calls int }

func (l *losingCancels) WatchCancels(_ context.Context, told func([]millrace.Cancel)) error {
	if l.calls++; l.calls > 1 {
		told([]millrace.Cancel{{Key: millrace.Key{ID: "x"}}})
	}
	return errors.New("connection lost")
}

func TestRememberedCancelsAreBounded(t *testing.T) {
	var s keySet
	for n := range maxCancels + 3 {
		s.add(millrace.Key{ID: strconv.Itoa(n)})
		s.add(millrace.Key{ID: strconv.Itoa(n)}) // again changes nothing
	}
	if len(s.keys) != maxCancels || len(s.order) != maxCancels {
		t.Fatalf("%d keys, %d in order", len(s.keys), len(s.order))
	}
	for n, want := range map[int]bool{0: false, 2: false, 3: true, maxCancels + 2: true} {
		if s.has(millrace.Key{ID: strconv.Itoa(n)}) != want {
			t.Errorf("key %d: %v, want %v", n, !want, want)
		}
	}
}

// slowCompleted holds up look-ups until the test lets them go.
type slowCompleted struct {
	*memoryStore
	asked, answer chan struct{}
}

func (s *slowCompleted) Completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	found, err := s.memoryStore.Completed(ctx, keys)
	s.asked <- struct{}{}
	<-s.answer
	return found, err
}

func TestCancelThatIsHeardWhileAnotherIsLookedUpEndsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		slow := &slowCompleted{memoryStore: store, asked: make(chan struct{}, 8), answer: make(chan struct{})}
		o := newOffline(t, slow, g.handle, nil)
		o.hearing(t)
		o.assign(0)
		first, second := task("a", 0, millrace.Normal), task("b", 0, millrace.Normal)
		o.feed(t, 0, first, second)
		synctest.Wait()
		store.cancel(t, first)
		o.hear(cancelOf(first))
		<-slow.asked
		store.cancel(t, second)
		o.hear(cancelOf(second))
		close(slow.answer)
		synctest.Wait()
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, l := range o.running {
			t.Errorf("%s runs on", l.current.task.ID)
		}
	})
}
