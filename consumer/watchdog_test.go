package consumer

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"millrace"
)

// deaf is a handler that ignores its context until it is released.
type deaf struct {
	release chan struct{}
	runs    atomic.Int32
}

func (d *deaf) handle(ctx context.Context, turn *millrace.Turn) error {
	if d.runs.Add(1) == 1 {
		<-d.release
	}
	return appendTask(ctx, turn)
}

// watched starts the watchdog for a test.
func (o *offline) watched(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.watchdogLoop(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func TestTurnTimeoutOfATypeTakesThePlaceOfTheGeneralOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		took := make(chan time.Duration, 2)
		o := newOffline(t, store, func(ctx context.Context, _ *millrace.Turn) error {
			began := time.Now()
			<-ctx.Done()
			took <- time.Since(began)
			return ctx.Err()
		}, func(c *Config) {
			c.MaxAttempts, c.TurnTimeout = 1, time.Minute
			c.TypeTimeouts = map[string]time.Duration{"research": time.Hour}
		})
		o.assign(0)
		short, long := task("a", 0, millrace.Normal), task("b", 0, millrace.Normal)
		long.Type = "research"
		o.feed(t, 0, short, long)
		if got := <-took; got != time.Minute {
			t.Errorf("the turn of another type ended after %s, want 1m", got)
		}
		if got := <-took; got != time.Hour {
			t.Errorf("the turn of the type ended after %s, want 1h", got)
		}
	})
}

func TestTurnThatReturnsAfterItsTimeHasFailedEvenWithoutAnError(t *testing.T) {
	for _, tt := range []struct {
		name     string
		deadline time.Duration // of the task
		reason   string
	}{
		{"timeout", 0, millrace.ReasonAttemptsExhausted},
		{"deadline", 30 * time.Second, millrace.ReasonDeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemoryStore()
				o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					time.Sleep(time.Minute + time.Nanosecond) //nolint:forbidigo // a handler that ignores its context
					return appendTask(ctx, turn)
				}, func(c *Config) { c.TurnTimeout, c.MaxAttempts = time.Minute, 2 })
				o.assign(0)
				late := task("c", 0, millrace.Normal)
				if tt.deadline > 0 {
					late.Deadline = time.Now().Add(tt.deadline)
				}
				o.feed(t, 0, late)
				<-time.After(5 * time.Minute)
				got := store.await(t, 1)[0]
				if got.DeadLetter == nil || got.DeadLetter.Reason != tt.reason {
					t.Fatalf("status %s, dead letter %+v; want a dead letter for %s", got.Status, got.DeadLetter, tt.reason)
				}
				if conv := store.convs["c"]; conv.Version != 0 {
					t.Errorf("the conversation is at version %d: a late turn has changed it", conv.Version)
				}
			})
		})
	}
}

func TestTurnThatReturnsJustInTimeCompletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			waitFor(ctx, time.Minute-time.Nanosecond)
			return appendTask(ctx, turn)
		}, func(c *Config) { c.TurnTimeout, c.MaxAttempts = time.Minute, 1 })
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		<-time.After(2 * time.Minute)
		if got := store.await(t, 1)[0]; got.Status != millrace.StatusCompleted {
			t.Errorf("status %s: %s", got.Status, got.Error)
		}
	})
}

func TestHandlerThatIgnoresItsContextIsReportedAndKeepsSlotAndLane(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(o *offline)
		want string
	}{
		{"timeout", func(*offline) { <-time.After(time.Minute) }, "deadline exceeded"},
		{"partition gone", func(o *offline) { o.lose(0) }, "context canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				log := zerolog.New(&out)
				d := &deaf{release: make(chan struct{})}
				store := newMemoryStore()
				o := newOffline(t, store, d.handle, func(c *Config) {
					c.TurnTimeout, c.Logger, c.Slots = time.Minute, &log, 1
				})
				o.watched(t)
				o.assign(0)
				o.feed(t, 0, task("c", 0, millrace.Normal))
				synctest.Wait()
				tt.end(o)
				<-time.After(9 * time.Second)
				synctest.Wait()
				if n := testutil.ToFloat64(o.metrics.stuckTurns); n != 0 {
					t.Errorf("%v turns stuck before the grace is over", n)
				}
				<-time.After(3 * time.Second)
				synctest.Wait()
				if n := testutil.ToFloat64(o.metrics.stuckTurns); n != 1 {
					t.Errorf("%v turns stuck, want 1", n)
				}
				if err := o.Live(t.Context()); err != nil {
					t.Errorf("not live already: %v", err)
				}
				<-time.After(5 * time.Minute)
				synctest.Wait()
				if err := o.Live(t.Context()); err == nil || !strings.Contains(err.Error(), "restart") {
					t.Errorf("live after five minutes with a stuck turn: %v", err)
				}
				// Whoever owns the partition now, nothing else runs in its slot or lane.
				o.assign(1)
				o.feed(t, 1, task("d", 0, millrace.Normal))
				synctest.Wait()
				if n := d.runs.Load(); n != 1 {
					t.Errorf("%d runs while the only slot is stuck", n)
				}
				lines := strings.Count(out.String(), "ignores that its context has ended")
				if lines != 1 || !strings.Contains(out.String(), `"task":"c/normal/0","type":"chat","conversation":"c"`) || !strings.Contains(out.String(), tt.want) {
					t.Errorf("want one line that names the task and %q, got %s", tt.want, out.String())
				}
				close(d.release)
				<-time.After(2 * time.Second)
				synctest.Wait()
				if n := testutil.ToFloat64(o.metrics.stuckTurns); n != 0 {
					t.Errorf("%v turns stuck after the handler has returned", n)
				}
				if err := o.Live(t.Context()); err != nil {
					t.Errorf("not live after the handler has returned: %v", err)
				}
			})
		})
	}
}

func TestTurnContextTellsWhyItWasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("why")
		for name, first := range map[string]func(*turnContext){
			"somebody waits": func(c *turnContext) { c.Done() },
			"nobody waits":   func(*turnContext) {},
		} {
			c := newTurnContext(t.Context(), time.Now().Add(time.Minute))
			first(c)
			child, cancel := context.WithCancel(c)
			c.cancel(why)
			<-c.Done()
			<-child.Done()
			if !errors.Is(c.Err(), context.Canceled) || !errors.Is(context.Cause(c), why) || !errors.Is(context.Cause(child), why) {
				t.Errorf("%s: %v because of %v, child because of %v", name, c.Err(), context.Cause(c), context.Cause(child))
			}
			cancel()
			if got := c.end(time.Now()); !errors.Is(got, why) {
				t.Errorf("%s: ended by %v", name, got)
			}
		}
		late := newTurnContext(t.Context(), time.Now())
		late.cancel(why)
		if got := late.end(time.Now()); !errors.Is(got, context.DeadlineExceeded) {
			t.Errorf("canceled after its deadline: ended by %v", got)
		}
	})
}
