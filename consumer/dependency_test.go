package consumer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

var testKafka = []kgo.Opt{kgo.SeedBrokers("none")}

// service is a dependency that a test stops.
type service struct {
	out    atomic.Bool
	hangs  atomic.Bool
	asked  atomic.Int32
	asking atomic.Int32
	most   atomic.Int32
}

func (s *service) check(ctx context.Context) error {
	s.asked.Add(1)
	s.most.Store(max(s.most.Load(), s.asking.Add(1)))
	defer s.asking.Add(-1)
	if s.hangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if s.out.Load() {
		return errors.New("connection refused")
	}
	return nil
}

// watching runs the watch of an engine's dependencies as Run does.
func (o *offline) watching(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	for _, w := range o.dependencies[1:] {
		o.slots.Go(func() { o.watch(ctx, w) })
	}
	o.joined.Store(true)
	t.Cleanup(cancel)
}

func on(services map[string]*service, optional bool) func(*Config) {
	return func(c *Config) {
		for name, s := range services {
			c.Dependencies = append(c.Dependencies, Dependency{Name: name, Check: s.check, Optional: optional})
		}
	}
}

func TestNoTurnStartsWhileADependencyIsOutAndRunningOnesFinish(t *testing.T) {
	for _, name := range []string{millrace.Postgres, millrace.Redis} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, s, g := newMemoryStore(), &service{}, newGate()
				o := newOffline(t, store, g.handle, on(map[string]*service{name: s}, false))
				o.watching(t)
				o.assign(0)
				o.feed(t, 0, task("before", 0, millrace.Normal))
				synctest.Wait()
				s.out.Store(true)
				<-time.After(2 * time.Second)
				err := o.Check(t.Context())
				if err == nil || !strings.Contains(err.Error(), name+" has been out for ") || !strings.Contains(err.Error(), "connection refused") {
					t.Errorf("ready says %v", err)
				}
				if err := o.Live(t.Context()); err != nil {
					t.Errorf("live says %v", err)
				}
				o.feed(t, 0, task("after", 0, millrace.High), task("after", 1, millrace.High))
				<-time.After(time.Minute)
				if got := g.ran(); got != "[before/normal/0]" {
					t.Errorf("ran %s", got)
				}
				g.release("before/normal/0", "after/high/0", "after/high/1")
				if got := ids(store.await(t, 1)); got != "[before/normal/0]" {
					t.Errorf("completed %s", got)
				}
				if most := s.most.Load(); most != 1 {
					t.Errorf("%d probes at once", most)
				}
				s.out.Store(false)
				back := time.Now()
				store.await(t, 3)
				if took := time.Since(back); took > probeMax {
					t.Errorf("it took %s to go on", took)
				}
				if err := o.Check(t.Context()); err != nil {
					t.Errorf("ready says %v", err)
				}
				if open, opened := testutil.ToFloat64(o.metrics.breakerOpen.WithLabelValues(name)), testutil.ToFloat64(o.metrics.breakerOpened.WithLabelValues(name)); open != 0 || opened != 1 {
					t.Errorf("open %v, opened %v", open, opened)
				}
			})
		})
	}
}

func TestWithoutAnOptionalDependencyTurnsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, s := newMemoryStore(), &service{}
		o := newOffline(t, store, appendTask, on(map[string]*service{millrace.Redis: s}, true))
		o.watching(t)
		o.assign(0)
		s.out.Store(true)
		<-time.After(5 * time.Second)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		store.await(t, 1)
		if err := o.Check(t.Context()); err != nil {
			t.Errorf("ready says %v", err)
		}
		if err := stateOf(o.Engine, millrace.Redis); err == nil {
			t.Error("the outage is not known")
		}
	})
}

func TestDependencyThatHangsIsFoundOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		o := newOffline(t, newMemoryStore(), appendTask, on(map[string]*service{millrace.Postgres: s}, false))
		o.watching(t)
		s.hangs.Store(true)
		<-time.After(checkInterval + 2*checkTimeout + checkGap + time.Second)
		if err := o.Check(t.Context()); err == nil {
			t.Error("ready")
		}
	})
}

func TestOneLostConnectionIsNoOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		o := newOffline(t, newMemoryStore(), appendTask, func(c *Config) {
			c.Dependencies = []Dependency{{Name: millrace.Postgres, Check: func(context.Context) error {
				if asked.Add(1)%2 == 1 {
					return errors.New("unexpected EOF")
				}
				return nil
			}}}
		})
		o.watching(t)
		<-time.After(time.Minute)
		if opened := testutil.ToFloat64(o.metrics.breakerOpened.WithLabelValues(millrace.Postgres)); opened != 0 || asked.Load() < 50 {
			t.Errorf("opened %v times, asked %d", opened, asked.Load())
		}
	})
}

// Turns that commit show that PostgreSQL answers; a turn that could not makes it
// be asked at once, whatever the others say.
func TestDependencyIsAskedOnlyWhenNobodyHasHeardFromIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, s := newMemoryStore(), &service{}
		o := newOffline(t, store, appendTask, on(map[string]*service{millrace.Postgres: s}, false))
		o.watching(t)
		o.assign(0)
		for i := range 100 {
			o.feed(t, 0, task("c", i, millrace.Normal))
			<-time.After(100 * time.Millisecond)
		}
		if n := s.asked.Load(); n > 0 {
			t.Errorf("asked %d times while turns committed", n)
		}
		failed := false
		store.mu.Lock()
		store.fail = func(millrace.Completion) error {
			if !failed {
				failed = true
				return millrace.UnavailableDependency(millrace.Postgres, errors.New("deadlock detected"))
			}
			return nil
		}
		store.mu.Unlock()
		o.feed(t, 0, task("d", 0, millrace.Normal), task("e", 0, millrace.Normal))
		synctest.Wait()
		if n := s.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		store.await(t, 102)
	})
}

// What runs when PostgreSQL goes away fails to commit; it burns no attempt, and
// runs as soon as it is back.
func TestOutageOfTheStoreBurnsNoAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, s := newMemoryStore(), &service{}
		down := func() error {
			if s.out.Load() {
				return millrace.UnavailableDependency(millrace.Postgres, errors.New("connection refused"))
			}
			return nil
		}
		store.fail = func(millrace.Completion) error { return down() }
		o := newOffline(t, store, appendTask, func(c *Config) {
			on(map[string]*service{millrace.Postgres: s}, false)(c)
			c.MaxAttempts = 1
		})
		o.watching(t)
		o.assign(0)
		n := 0
		for range 5 {
			s.out.Store(true)
			for range 50 {
				n++
				o.feed(t, 0, task(fmt.Sprint("c", n), 0, millrace.Normal))
			}
			<-time.After(10 * time.Second)
			s.out.Store(false)
			back := time.Now()
			store.await(t, n)
			if took := time.Since(back); took > probeMax {
				t.Errorf("all had run %s after the outage", took)
			}
		}
		for _, c := range store.await(t, n) {
			if c.Status != millrace.StatusCompleted || c.Attempts != 1 {
				t.Errorf("%s: %s, %d attempts", c.Task.ID, c.Status, c.Attempts)
			}
		}
	})
}

func TestKafkaThatIsGoneMakesTheWorkerUnready(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	b.send(t, task("c", 0, millrace.Normal))
	engine, _ := b.start(t, store, appendTask, nil)
	store.await(t, 1)
	if err := engine.Check(t.Context()); err != nil {
		t.Errorf("ready says %v", err)
	}
	b.cluster.Close()
	eventually(t, "Kafka is found to be out", func() bool { return stateOf(engine, millrace.Kafka) != nil })
	if err := engine.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "kafka has been out") {
		t.Errorf("ready says %v", err)
	}
	if err := engine.Live(t.Context()); err != nil {
		t.Errorf("live says %v", err)
	}
}

// stateOf says why a dependency is out, or nil. It asks nobody.
func stateOf(e *Engine, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.watchedOf(name).state()
}
