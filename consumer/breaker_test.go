package consumer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace"
)

const provider = "llm/p"

// outOf is what a turn returns that a dependency has failed.
func outOf(dependency string) error {
	return fmt.Errorf("chat: %w", millrace.UnavailableDependency(dependency, errors.New("status 503")))
}

func typed(kind, conversation string, n int, p millrace.Priority) millrace.Task {
	t := task(conversation, n, p)
	t.Type = kind
	return t
}

// agents is a handler whose tasks of type "agent" call a provider.
type agents struct {
	out atomic.Bool
	// takes is how long a call takes.
	takes time.Duration

	mu      sync.Mutex
	running int
	most    int         // calls at once
	calls   []time.Time // when they were made
}

func newAgents(takes time.Duration) *agents {
	a := &agents{takes: takes}
	a.out.Store(true)
	return a
}

func (a *agents) handle(ctx context.Context, turn *millrace.Turn) error {
	if turn.Task().Type != "agent" {
		return appendTask(ctx, turn)
	}
	a.mu.Lock()
	a.running++
	a.most = max(a.most, a.running)
	a.calls = append(a.calls, time.Now())
	a.mu.Unlock()
	<-time.After(a.takes)
	a.mu.Lock()
	a.running--
	a.mu.Unlock()
	if a.out.Load() {
		return outOf(provider)
	}
	turn.Reached(provider)
	return appendTask(ctx, turn)
}

// seen returns what there was since it was asked last.
func (a *agents) seen() (calls []time.Time, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	calls, most = a.calls, a.most
	a.calls, a.most = nil, a.running
	return calls, most
}

func TestProviderThatIsOutHoldsOnlyTheTypeThatCallsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, a := newMemoryStore(), newAgents(time.Millisecond)
		o := newOffline(t, store, a.handle, func(c *Config) { c.Slots = 1; c.MaxAttempts = 2 })
		o.assign(0)
		for i := range 20 {
			o.feed(t, 0, typed("agent", fmt.Sprint("agent-", i), 0, millrace.Normal))
		}
		<-time.After(time.Minute)
		a.seen()
		if open := testutil.ToFloat64(o.metrics.breakerOpen.WithLabelValues(provider)); open != 1 {
			t.Errorf("open %v, want 1", open)
		}
		began := time.Now()
		for i := range 50 {
			o.feed(t, 0, typed("plain", fmt.Sprint("plain-", i), 0, millrace.Batch))
		}
		for _, c := range store.await(t, 50) {
			if c.Task.Type != "plain" {
				t.Errorf("%s completed while its provider is out", c.Task.ID)
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("tasks that call nobody took %s", took)
		}
		<-time.After(10 * time.Minute)
		// A probe each time the delay is over, at its longest 5 to 10 s.
		calls, _ := a.seen()
		if n := len(calls); n < 60 || n > 125 {
			t.Errorf("%d calls in 10 minutes of an outage", n)
		}
		o.mu.Lock()
		if n := len(o.breakers.open[0].parked); n < 19 {
			t.Errorf("%d lanes wait, want all but the probe", n)
		}
		o.mu.Unlock()
		a.out.Store(false)
		back := time.Now()
		for _, c := range store.await(t, 70) {
			if c.Status != millrace.StatusCompleted || c.Attempts != 1 {
				t.Errorf("%s: %s after %d attempts", c.Task.ID, c.Status, c.Attempts)
			}
		}
		if took := time.Since(back); took > holdMax+time.Second {
			t.Errorf("all ran %s after the end of the outage", took)
		}
		synctest.Wait()
		if open := testutil.ToFloat64(o.metrics.breakerOpen.WithLabelValues(provider)); open != 0 || len(o.breakers.all) != 0 || o.breakers.known.Load() != 0 {
			t.Errorf("open %v, %d breakers left", open, len(o.breakers.all))
		}
		if opened := testutil.ToFloat64(o.metrics.breakerOpened.WithLabelValues(provider)); opened != 1 {
			t.Errorf("opened %v times, want once", opened)
		}
	})
}

func TestOneProbeAtATimeAndTheirDelaysGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, a := newMemoryStore(), newAgents(time.Second)
		o := newOffline(t, store, a.handle, nil)
		o.assign(0)
		for i := range 40 {
			o.feed(t, 0, typed("agent", fmt.Sprint("c", i), 0, millrace.Normal))
		}
		<-time.After(10 * time.Second) // all that ran when it opened have failed
		a.seen()
		for i := range 40 { // those that come later wait as well
			o.feed(t, 0, typed("agent", fmt.Sprint("later", i), 0, millrace.High))
			<-time.After(700 * time.Millisecond) // probes are under way when some come
		}
		<-time.After(5 * time.Minute)
		calls, most := a.seen()
		if most != 1 {
			t.Errorf("%d probes at once", most)
		}
		last := calls[len(calls)-1].Sub(calls[len(calls)-2])
		if last < holdMax/2+a.takes || last > holdMax+a.takes {
			t.Errorf("the last probes are %s apart", last)
		}
	})
}

// The probe's slot and others contend when it answers: nobody runs twice, nobody
// is forgotten.
func TestAllThatWaitsRunsOnceTheProbeHasBeenAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, says := range []bool{true, false} {
			store, a := newMemoryStore(), newAgents(10*time.Millisecond)
			o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
				if !a.out.Load() && !says {
					return appendTask(ctx, turn) // a handler that does not say whom it has reached
				}
				return a.handle(ctx, turn)
			}, nil)
			o.assign(0)
			for i := range 200 {
				o.feed(t, 0, typed("agent", fmt.Sprint("c", i%100), i, millrace.Normal))
			}
			<-time.After(time.Minute)
			a.out.Store(false)
			done := store.await(t, 200)
			seen := make(map[string]bool)
			for _, c := range done {
				if seen[c.Task.ID] || c.Attempts != 1 {
					t.Errorf("%s: twice or after %d attempts", c.Task.ID, c.Attempts)
				}
				seen[c.Task.ID] = true
			}
			synctest.Wait()
			if o.held() != 0 || o.schedule.free != 16 || len(o.breakers.open) != 0 {
				t.Errorf("%d bytes held, %d slots free, %d open", o.held(), o.schedule.free, len(o.breakers.open))
			}
		}
	})
}

func TestBreakerOpensAgainWhenTheDependencyFailsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, a := newMemoryStore(), newAgents(100*time.Millisecond)
		o := newOffline(t, store, a.handle, func(c *Config) { c.MaxAttempts = 2 })
		o.assign(0)
		n := 0
		for range 3 {
			a.out.Store(true)
			for range 30 {
				n++
				o.feed(t, 0, typed("agent", fmt.Sprint("c", n), 0, millrace.Normal))
			}
			<-time.After(30 * time.Second)
			a.out.Store(false)
			store.await(t, n)
		}
		for _, c := range store.await(t, n) {
			if c.Attempts != 1 || c.Status != millrace.StatusCompleted {
				t.Errorf("%s: %s after %d attempts", c.Task.ID, c.Status, c.Attempts)
			}
		}
		if opened := testutil.ToFloat64(o.metrics.breakerOpened.WithLabelValues(provider)); opened != 3 {
			t.Errorf("opened %v times, want 3", opened)
		}
	})
}

// A request that a provider always answers with 500 is not an outage: others get
// through.
func TestTaskThatAloneFailsBurnsItsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().Conversation == "bad" {
				return outOf(provider)
			}
			turn.Reached(provider)
			return appendTask(ctx, turn)
		}, func(c *Config) { c.MaxAttempts = 3 })
		o.assign(0)
		o.feed(t, 0, typed("agent", "bad", 0, millrace.Normal))
		for i := range 300 {
			o.feed(t, 0, typed("agent", "good", i, millrace.Normal))
			<-time.After(500 * time.Millisecond)
		}
		done := store.await(t, 301)
		i := slices.IndexFunc(done, func(c millrace.Completion) bool { return c.Task.Conversation == "bad" })
		if d := done[i].DeadLetter; d == nil || d.Reason != millrace.ReasonAttemptsExhausted || done[i].Attempts != 3 {
			t.Errorf("%d attempts, dead letter %+v", done[i].Attempts, d)
		}
		if opened := testutil.ToFloat64(o.metrics.breakerOpened.WithLabelValues(provider)); opened != 0 {
			t.Errorf("one task's failures opened a breaker %v times", opened)
		}
	})
}

func TestProbeThatSaysNothingLeavesItsPlaceToAnother(t *testing.T) {
	for name, ends := range map[string]func(*offline) error{
		"another error":       func(*offline) error { return millrace.Permanent(errors.New("no")) },
		"its goroutine's end": func(*offline) error { runtime.Goexit(); return nil },
		"a lost partition":    func(o *offline) error { o.lose(1); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, out := newMemoryStore(), &atomic.Bool{}
				out.Store(true)
				var o *offline
				o = newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					if out.Load() {
						return outOf(provider)
					}
					if turn.Task().Priority == millrace.High && turn.Attempt() == 1 {
						return ends(o)
					}
					turn.Reached(provider)
					return appendTask(ctx, turn)
				}, nil)
				o.assign(0, 1)
				for i := range 10 {
					o.feed(t, 0, typed("agent", fmt.Sprint("c", i), 0, millrace.Normal))
				}
				<-time.After(time.Minute)
				o.feed(t, 1, typed("agent", "first", 0, millrace.High)) // is chosen for its priority
				<-time.After(10 * time.Second)
				out.Store(false)
				<-time.After(holdMax + 5*time.Second)
				store.mu.Lock()
				defer store.mu.Unlock()
				if n := len(store.order); n < 10 {
					t.Errorf("%d of 10 others have run", n)
				}
			})
		})
	}
}

func TestProbeThatRunsForLongDoesNotDecideForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, out := newMemoryStore(), &atomic.Bool{}
		out.Store(true)
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if out.Load() {
				return outOf(provider)
			}
			if turn.Task().Priority == millrace.High {
				<-ctx.Done() // for the time of a turn
				return ctx.Err()
			}
			turn.Reached(provider)
			return appendTask(ctx, turn)
		}, nil)
		o.assign(0)
		o.feed(t, 0, typed("agent", "long", 0, millrace.High))
		for i := range 10 {
			o.feed(t, 0, typed("agent", fmt.Sprint("c", i), 0, millrace.Normal))
		}
		<-time.After(time.Minute)
		out.Store(false)
		<-time.After(probeFor + holdMax + time.Second)
		store.mu.Lock()
		defer store.mu.Unlock()
		if n := len(store.order); n != 10 {
			t.Errorf("%d of 10 others have run", n)
		}
	})
}

func TestTaskIsGivenUpAtItsDeadlineWhileItsProviderIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, a := newMemoryStore(), newAgents(0)
		o := newOffline(t, store, a.handle, nil)
		o.assign(0)
		for i := range 10 {
			o.feed(t, 0, typed("agent", fmt.Sprint("c", i), 0, millrace.Normal))
		}
		<-time.After(time.Minute)
		late := typed("agent", "late", 0, millrace.Batch)
		late.Deadline = time.Now().Add(20 * time.Second).Truncate(time.Millisecond)
		o.feed(t, 0, late)
		<-time.After(21 * time.Second)
		store.mu.Lock()
		defer store.mu.Unlock()
		if len(store.order) != 1 || store.order[0].DeadLetter == nil || store.order[0].DeadLetter.Reason != millrace.ReasonDeadlineExceeded {
			t.Errorf("completed %v", store.order)
		}
	})
}

func TestCancelledTaskDoesNotWaitForItsProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, a := newMemoryStore(), newAgents(0)
		o := newOffline(t, store, a.handle, nil)
		o.assign(0)
		for i := range 10 {
			o.feed(t, 0, typed("agent", fmt.Sprint("c", i), 0, millrace.Normal))
		}
		<-time.After(time.Minute)
		waits := typed("agent", "waits", 0, millrace.Batch)
		o.feed(t, 0, waits)
		synctest.Wait()
		store.mu.Lock()
		store.completions[waits.Key()] = millrace.Completion{Task: waits, Status: millrace.StatusCancelled}
		store.mu.Unlock()
		o.hear([]millrace.Cancel{{Key: waits.Key(), Conversation: "waits"}})
		synctest.Wait()
		if n := o.waitingIn("waits"); n != 0 {
			t.Errorf("%d tasks wait, want none", n)
		}
	})
}

func TestManyTypesThatFailNowAndThenAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffline(t, newMemoryStore(), appendTask, nil)
		o.mu.Lock()
		defer o.mu.Unlock()
		for i := range 1000 {
			it := &item{task: typed(fmt.Sprint("type-", i), "c", i, millrace.Normal)}
			o.breakers.blame(it, provider, time.Now().Add(time.Duration(i)*time.Second))
		}
		if n := len(o.breakers.all); n > 62 || int(o.breakers.known.Load()) != n {
			t.Errorf("%d breakers are kept, %d known", n, o.breakers.known.Load())
		}
	})
}

func TestClosedBreakersCostNoAllocation(t *testing.T) {
	e, err := New(Config{Kafka: testKafka, Handler: millrace.HandlerFunc(appendTask), Store: newMemoryStore()})
	if err != nil {
		t.Fatal(err)
	}
	it := &item{task: task("c", 0, millrace.Normal)}
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() {
		e.breakers.Reached(&it.task, provider)
		if e.breakers.holding(it, now) != nil {
			t.Error("held")
		}
		e.postgres.hear()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A suspect that waits to run alone is made ready again while a breaker holds its
// type: it waits in two places, and leaves both when it runs.
func TestSuspectThatRunsWaitsForNoBreakerAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newMemoryStore(), newGate()
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if err := g.handle(ctx, turn); err != nil || turn.Task().Type != "agent" || turn.Task().Conversation == "s" {
				return err
			}
			return outOf(provider)
		}, nil)
		o.assign(0)
		o.feed(t, 0, typed("plain", "plain", 0, millrace.Normal))
		var agents []string
		for i := range breakAfter {
			tk := typed("agent", fmt.Sprint("agent-", i), 0, millrace.Normal)
			o.feed(t, 0, tk)
			agents = append(agents, tk.ID)
		}
		synctest.Wait()
		suspect := typed("agent", "s", 0, millrace.Normal)
		o.suspected(t, 0, suspect)
		g.release(agents...)
		rejected := typed("agent", "s", 1, millrace.Normal)
		rejected.OnBusy = millrace.BusyReject
		o.feed(t, 0, rejected)
		g.release("plain/normal/0")
		if ran := g.ran(); !slices.Contains(g.started, suspect.ID) {
			t.Fatalf("ran %s, want the suspect to run", ran)
		}
		<-time.After(holdMax) // a probe has its time
		o.mu.Lock()
		for _, br := range o.breakers.open {
			for l := range br.parked {
				if l.running {
					t.Errorf("lane %q waits for a breaker and runs", l.key.conversation)
				}
			}
		}
		o.mu.Unlock()
		g.release(suspect.ID)
	})
}

func TestInterruptedTaskDoesNotWaitForItsProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(_ context.Context, turn *millrace.Turn) error {
			switch tk := turn.Task(); {
			case tk.Type != "agent":
				return nil
			case tk.Conversation == "c" && turn.Attempt() == 1:
				return millrace.RetryAfter(10*time.Second, errors.New("later"))
			}
			return outOf(provider)
		}, nil)
		o.hearing(t)
		o.assign(0)
		o.feed(t, 0, typed("agent", "c", 0, millrace.Normal))
		for i := range 2 * breakAfter {
			o.feed(t, 0, typed("agent", fmt.Sprint("agent-", i), 0, millrace.Normal))
		}
		<-time.After(time.Minute)
		began := time.Now()
		o.feed(t, 0, busyTask(1, millrace.Normal, millrace.BusyInterrupt))
		if got := ends(store.await(t, 2)); got != "[c/normal/0:cancelled c/normal/1:completed]" || time.Since(began) > time.Second {
			t.Errorf("after %s: %s", time.Since(began), got)
		}
	})
}

// What is told of cancels is a hint, and may be wrong.
func TestTaskThatIsWronglySaidToBeCancelledDoesNotHammerItsProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgents(time.Millisecond)
		o := newOffline(t, newMemoryStore(), a.handle, nil)
		o.assign(0)
		rumoured := typed("agent", "c", 0, millrace.Normal)
		o.hear(cancelOf(rumoured))
		o.feed(t, 0, rumoured)
		for i := range 2 * breakAfter {
			o.feed(t, 0, typed("agent", fmt.Sprint("agent-", i), 0, millrace.Normal))
		}
		<-time.After(time.Minute)
		a.seen()
		<-time.After(time.Minute)
		if calls, _ := a.seen(); len(calls) > 120 {
			t.Errorf("%d calls in a minute of an outage", len(calls))
		}
		a.out.Store(false)
	})
}
