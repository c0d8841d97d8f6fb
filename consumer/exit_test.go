package consumer

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"millrace"
)

func TestHandlerThatEndsItsGoroutineFailsItsAttemptAndLosesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, calls := newMemoryStore(), 0
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().Conversation == "exits" {
				calls++
				runtime.Goexit()
			}
			return appendTask(ctx, turn)
		}, func(c *Config) { c.Slots, c.MaxAttempts = 1, 3 })
		o.assign(0)
		o.feed(t, 0, task("exits", 0, millrace.Normal), task("well", 0, millrace.Normal), task("well", 1, millrace.Normal))
		done := store.await(t, 3)
		if calls != 3 {
			t.Errorf("%d calls, want an attempt each of 3", calls)
		}
		for _, c := range done {
			failed := c.Task.Conversation == "exits"
			if failed != (c.Status == millrace.StatusFailed) {
				t.Errorf("%s: %s", c.Task.ID, c.Status)
			}
			if failed && (c.DeadLetter == nil || c.DeadLetter.Reason != millrace.ReasonAttemptsExhausted ||
				!strings.Contains(c.DeadLetter.Detail, "Goexit") || !strings.Contains(c.DeadLetter.Stack, "exit_test.go")) {
				t.Errorf("dead letter %+v", c.DeadLetter)
			}
		}
		synctest.Wait()
		if o.schedule.free != 1 || o.held() != 0 {
			t.Errorf("%d free slots of 1, %d bytes held", o.schedule.free, o.held())
		}
	})
}

func TestJournaledStepOfAHandlerThatEndsItsGoroutineKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().Priority == millrace.Batch && turn.Attempt() == 1 {
				if _, err := turn.Step(ctx, "call", nil, func(context.Context) (millrace.StepResult, error) {
					return millrace.StepResult{}, nil
				}); err != nil {
					return err
				}
				runtime.Goexit()
			}
			return appendTask(ctx, turn)
		}, func(c *Config) { c.Journal = memoryJournal{} })
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Batch))
		synctest.Wait()
		o.feed(t, 0, task("c", 0, millrace.High))
		if got, want := ids(store.await(t, 2)), "[c/batch/0 c/high/0]"; got != want {
			t.Errorf("order %s, want %s", got, want)
		}
	})
}

func TestHandlerThatEndsItsGoroutineAfterItsPartitionWasLostIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, _ *millrace.Turn) error {
			<-ctx.Done()
			runtime.Goexit()
			return nil
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.lose(0)
		synctest.Wait()
		if len(store.order) != 0 || o.held() != 0 || o.schedule.free != 16 {
			t.Errorf("completed %v, %d bytes held, %d free slots of 16", ids(store.order), o.held(), o.schedule.free)
		}
	})
}
