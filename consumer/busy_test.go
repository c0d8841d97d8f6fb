package consumer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace"
)

func busyTask(n int, p millrace.Priority, policy millrace.OnBusy) millrace.Task {
	t := task("c", n, p)
	t.OnBusy = policy
	return t
}

func ends(completions []millrace.Completion) string {
	var out []string
	for _, c := range completions {
		out = append(out, fmt.Sprintf("%s:%s", c.Task.ID, c.Status))
	}
	return fmt.Sprint(out)
}

func TestRejectingTaskFailsAtOnceWhileItsConversationIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, g.handle, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, busyTask(0, millrace.Normal, millrace.BusyReject), busyTask(1, millrace.Normal, millrace.BusyReject),
			busyTask(2, millrace.Normal, millrace.BusyEnqueue), busyTask(3, millrace.High, millrace.BusyReject))
		synctest.Wait()
		if got := ends(store.await(t, 2)); got != "[c/normal/1:failed c/high/3:failed]" && got != "[c/high/3:failed c/normal/1:failed]" {
			t.Errorf("ended while the first runs: %s", got)
		}
		for _, c := range store.await(t, 2) {
			if c.DeadLetter != nil || c.Attempts != 0 || c.Error != "busy: another task of the conversation runs or waits" {
				t.Errorf("%s: dead letter %v, %d attempts, %q", c.Task.ID, c.DeadLetter, c.Attempts, c.Error)
			}
		}
		g.release("c/normal/0", "c/normal/2")
		// Nothing runs or waits any more.
		o.feed(t, 0, busyTask(4, millrace.Normal, millrace.BusyReject))
		g.release("c/normal/4")
		if got := ends(store.await(t, 5)[2:]); got != "[c/normal/0:completed c/normal/2:completed c/normal/4:completed]" {
			t.Errorf("then: %s", got)
		}
		if got := g.ran(); got != "[c/normal/0 c/normal/2 c/normal/4]" {
			t.Errorf("ran %s", got)
		}
		if n := testutil.ToFloat64(o.metrics.busy.WithLabelValues("rejected")); n != 2 {
			t.Errorf("%v rejections counted", n)
		}
		if got := o.part(millrace.Normal, 0).tracker.next; got != 4 {
			t.Errorf("offset %d is the lowest that is not done, want 4", got)
		}
		if o.held() != 0 {
			t.Errorf("%d bytes are left", o.held())
		}
		for key := range o.lanes {
			if key.conversation != "c" { // which is kept for its next turn
				t.Errorf("lane %+v is left", key)
			}
		}
	})
}

func TestRejectingTaskIsRejectedWhileItsConversationWaitsForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(_ context.Context, turn *millrace.Turn) error {
			if turn.Attempt() == 1 {
				return millrace.RetryAfter(10*time.Second, errors.New("later"))
			}
			return nil
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyReject))
		if got := ends(store.await(t, 2)); got != "[c/normal/1:failed c/normal/0:completed]" {
			t.Errorf("ended %s", got)
		}
	})
}

// A sender that repeats a task must not have it rejected, or ended, for itself.
func TestRepeatOfATaskDoesNotFindItsConversationBusyWithItself(t *testing.T) {
	for _, policy := range []millrace.OnBusy{millrace.BusyReject, millrace.BusyInterrupt} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, g := newMemoryStore(), newGate()
				o := newOffline(t, store, g.handle, nil)
				o.hearing(t)
				o.assign(0)
				o.feed(t, 0, busyTask(0, millrace.Normal, policy))
				synctest.Wait()
				o.feed(t, 0, busyTask(0, millrace.Normal, policy))
				synctest.Wait()
				g.release("c/normal/0")
				if got := ends(store.await(t, 1)); got != "[c/normal/0:completed]" {
					t.Errorf("ended %s", got)
				}
				if got := g.ran(); got != "[c/normal/0]" {
					t.Errorf("ran %s", got)
				}
			})
		})
	}
}

func TestInterruptCommitsThePartialAnswerBeforeTheNextTurn(t *testing.T) {
	for _, tt := range []struct {
		name string
		ret  func(ctx context.Context) error
	}{
		{"handler returns its context's error", func(ctx context.Context) error { return ctx.Err() }},
		{"handler returns nil", func(context.Context) error { return nil }},
		{"handler panics", func(context.Context) error { panic("no") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemoryStore()
				var cause error
				o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().ID != "c/normal/0" {
						return appendTask(ctx, turn)
					}
					if err := errors.Join(turn.Append(millrace.Message{Role: millrace.RoleAssistant, Content: "the answer beg"}),
						turn.SetState(1), turn.Emit(millrace.Event{Type: "x", Data: []byte("1")}), turn.Result("the answer beg")); err != nil {
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
				o.feed(t, 0, busyTask(2, millrace.High, millrace.BusyInterrupt))
				all := store.await(t, 3)
				if got := ends(all); got != "[c/normal/0:cancelled c/high/2:completed c/normal/1:completed]" {
					t.Fatalf("ended %s", got)
				}
				if !errors.Is(cause, millrace.ErrInterrupted) {
					t.Errorf("the context ended because of %v", cause)
				}
				first := all[0]
				if len(first.Effects.Messages) != 1 || string(first.Effects.Result) != `"the answer beg"` || first.DeadLetter != nil || first.Attempts != 1 {
					t.Errorf("the interrupted turn left %+v after %d attempts, dead letter %v", first.Effects, first.Attempts, first.DeadLetter)
				}
				if first.Effects.State != nil || first.Effects.Events != nil {
					t.Errorf("it left state %s and events %v of half a turn", first.Effects.State, first.Effects.Events)
				}
				if all[1].Base.Length != 1 || all[1].Base.Version != 1 {
					t.Errorf("the next turn ran on %+v, without the partial answer", all[1].Base)
				}
			})
		})
	}
}

func TestInterruptOfATaskThatWaitsForItsNextAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		runs := 0
		o := newOffline(t, store, func(_ context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/0" {
				runs++
				return millrace.RetryAfter(time.Hour, errors.New("later"))
			}
			return nil
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		began := time.Now()
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyInterrupt))
		all := store.await(t, 2)
		if got := ends(all); got != "[c/normal/0:cancelled c/normal/1:completed]" || time.Since(began) > time.Second {
			t.Errorf("after %s: %s", time.Since(began), got)
		}
		if runs != 1 || all[0].Attempts != 1 {
			t.Errorf("%d runs, %d attempts said", runs, all[0].Attempts)
		}
	})
}

// The turn has returned and its commit is under way when the interrupt comes: the
// answer is whole, and stays.
func TestInterruptThatComesAfterTheHandlerHasReturnedIsTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		committing, commit := make(chan struct{}, 1), make(chan struct{})
		slow := &slowCommit{memoryStore: store, committing: committing, commit: commit}
		o := newOffline(t, slow, appendTask, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		<-committing
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyInterrupt))
		synctest.Wait()
		close(commit)
		if got := ends(store.await(t, 2)); got != "[c/normal/0:completed c/normal/1:completed]" {
			t.Errorf("ended %s", got)
		}
	})
}

type slowCommit struct {
	*memoryStore
	committing chan struct{}
	commit     chan struct{}
}

func (s *slowCommit) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	select {
	case s.committing <- struct{}{}:
	default:
	}
	<-s.commit
	return s.memoryStore.Commit(ctx, c)
}

// A sender repeats a task that has interrupted and is done long since.
func TestRepeatOfATaskThatIsDoneInterruptsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, g.handle, nil)
		o.hearing(t)
		o.assign(0)
		once := busyTask(0, millrace.Normal, millrace.BusyInterrupt)
		o.feed(t, 0, once)
		g.release(once.ID)
		store.await(t, 1)
		o.feed(t, 0, task("c", 1, millrace.Normal))
		synctest.Wait()
		o.feed(t, 0, once)
		synctest.Wait()
		g.release("c/normal/1")
		if got := ends(store.await(t, 2)); got != "[c/normal/0:completed c/normal/1:completed]" {
			t.Errorf("ended %s", got)
		}
	})
}

// PostgreSQL is out when the interrupted turn commits: nothing of the conversation
// overtakes it, the handler does not run again, and its partial answer is kept.
func TestInterruptedTurnKeepsItsPlaceAndItsAnswerThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		failures := 3
		store.fail = func(c millrace.Completion) error {
			if c.Status == millrace.StatusCancelled && failures > 0 {
				failures--
				return millrace.Unavailable(errors.New("out"))
			}
			return nil
		}
		runs := 0
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/0" {
				runs++
				if err := appendTask(ctx, turn); err != nil {
					return err
				}
				<-ctx.Done()
			}
			return appendTask(ctx, turn)
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.feed(t, 0, busyTask(1, millrace.High, millrace.BusyInterrupt))
		all := store.await(t, 2)
		if got := ends(all); got != "[c/normal/0:cancelled c/high/1:completed]" || runs != 1 || failures != 0 {
			t.Errorf("ended %s after %d runs, %d outages to go", got, runs, failures)
		}
		if len(all[0].Effects.Messages) == 0 {
			t.Error("the partial answer is gone")
		}
	})
}

// Another worker has moved the conversation on: the partial answer has no place in
// it, and the task ends all the same.
func TestInterruptedTurnOnAnOldVersionEndsWithoutItsMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if err := appendTask(ctx, turn); err != nil || turn.Task().ID != "c/normal/0" {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		store.convs["c"] = millrace.Conversation{ID: "c", Version: 7}
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyInterrupt))
		all := store.await(t, 2)
		if got := ends(all); got != "[c/normal/0:cancelled c/normal/1:completed]" || len(all[0].Effects.Messages) != 0 || store.convs["c"].Version != 8 {
			t.Errorf("ended %s with %v, conversation at version %d", got, all[0].Effects.Messages, store.convs["c"].Version)
		}
	})
}

func TestInterruptWhileThePartitionGoesLeavesTheTaskToItsNextOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, g.handle, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyInterrupt))
		o.lose(0)
		synctest.Wait()
		if got := ends(store.order); got != "[]" {
			t.Errorf("ended %s on a partition that is lost", got)
		}
	})
}

func TestBusyPolicyOfAnUnkeyedTaskMeansNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, g.handle, nil)
		o.assign(0)
		one, two := task("", 0, millrace.Normal), task("", 1, millrace.Normal)
		two.OnBusy = millrace.BusyReject
		o.feed(t, 0, one, two)
		synctest.Wait()
		g.release(one.ID, two.ID)
		for _, c := range store.await(t, 2) {
			if c.Status != millrace.StatusCompleted {
				t.Errorf("%s: %s", c.Task.ID, c.Status)
			}
		}
	})
}

func TestInterruptAndTheEndOfItsTurnDoNotRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		commit, fail := make(chan struct{}), make(chan struct{})
		slow := &slowCommit{memoryStore: store, committing: make(chan struct{}, 1), commit: commit}
		o := newOffline(t, slow, func(_ context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/0" {
				<-fail
				return millrace.Permanent(errors.New("no"))
			}
			return nil
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		// Nothing orders the two, so that the race detector sees both.
		close(fail)
		<-time.After(time.Millisecond)
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyInterrupt))
		synctest.Wait()
		close(commit)
		if got := ends(store.await(t, 2)); got != "[c/normal/0:failed c/normal/1:completed]" && got != "[c/normal/0:cancelled c/normal/1:completed]" {
			t.Errorf("ended %s", got)
		}
	})
}
