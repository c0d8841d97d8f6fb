package consumer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
)

// Dependency is a service that turns need and the engine can ask for itself.
type Dependency struct {
	// Name is what [millrace.UnavailableError] calls it.
	Name string
	// Check asks whether it answers. It must heed its context.
	Check func(context.Context) error
	// Optional says that turns start without it: its outages are only counted.
	Optional bool
}

const (
	// checkInterval is how often a dependency is asked that nobody has heard from.
	checkInterval = time.Second
	checkTimeout  = time.Second
	// checkGap is the least time between two questions, however many turns complain.
	checkGap = 100 * time.Millisecond
	// probeMin and probeMax bound the delay between two probes of what is out. It
	// doubles, and half of it is random: all workers see the same outage.
	probeMin, probeMax = 200 * time.Millisecond, 2 * time.Second
)

// watched is a dependency and what is known of it. One goroutine, which watch
// runs in, asks it: so there is never more than one probe of a worker under way.
type watched struct {
	Dependency
	// heard says that it has answered somebody since it was asked last.
	heard atomic.Bool
	// doubted wakes watch: a turn says that it is out.
	doubted chan struct{}

	// Guarded by the engine's mutex.
	out   error // why it is out
	since time.Time

	open           prometheus.Gauge
	opened         prometheus.Counter
	answered, mute prometheus.Counter
}

func (e *Engine) newWatched(d Dependency) *watched {
	m := e.metrics
	w := &watched{
		Dependency: d, doubted: make(chan struct{}, 1),
		open: m.breakerOpen.WithLabelValues(d.Name), opened: m.breakerOpened.WithLabelValues(d.Name),
		answered: m.breakerProbes.WithLabelValues(d.Name, "answered"), mute: m.breakerProbes.WithLabelValues(d.Name, "failed"),
	}
	w.open.Set(0)
	return w
}

// watch asks a dependency once in a while when nobody has heard from it, and at
// once when a turn says that it is out. It stops the engine when it is, and starts
// it again when it answers.
func (e *Engine) watch(ctx context.Context, w *watched) {
	timer := time.NewTimer(checkInterval)
	defer timer.Stop()
	wait := func(d time.Duration) bool {
		timer.Reset(d)
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		}
	}
	for {
		timer.Reset(checkInterval)
		doubted := false
		select {
		case <-ctx.Done():
			return
		case <-w.doubted:
			doubted = true
		case <-timer.C:
		}
		if heard := w.heard.Swap(false); heard && !doubted {
			continue
		}
		// One lost connection is no outage: what was idle may have been closed long ago.
		err := e.check(ctx, w)
		if !wait(checkGap) {
			return
		}
		if err != nil {
			err = e.check(ctx, w)
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		e.stopFor(w, err)
		for try := 0; err != nil; try++ {
			if !wait(probeDelay(try)) {
				return
			}
			if err = e.check(ctx, w); err != nil {
				w.mute.Inc()
			}
		}
		w.answered.Inc()
		e.goOn(w)
	}
}

func (e *Engine) check(ctx context.Context, w *watched) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return w.Check(ctx)
}

func probeDelay(try int) time.Duration {
	d := min(probeMin<<min(try, 10), probeMax)
	return d/2 + rand.N(d/2) //nolint:gosec // spreads probes, guards nothing
}

func (e *Engine) stopFor(w *watched, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.out, w.since = err, time.Now()
	if !w.Optional {
		e.out++
	}
	w.open.Set(1)
	w.opened.Inc()
	e.log.Error().Err(err).Str("dependency", w.Name).Bool("turns_start", w.Optional).Msg("a dependency is out")
}

func (e *Engine) goOn(w *watched) {
	e.mu.Lock()
	defer e.mu.Unlock()
	lasted := time.Since(w.since)
	w.out = nil
	if !w.Optional {
		e.out--
	}
	w.open.Set(0)
	e.log.Info().Str("dependency", w.Name).Dur("out_for", lasted).Msg("a dependency answers again")
	e.dispatch()
}

// watchedOf returns a dependency that the engine asks for itself, or nil.
func (e *Engine) watchedOf(name string) *watched {
	i := slices.IndexFunc(e.dependencies, func(w *watched) bool { return w.Name == name })
	if i < 0 {
		return nil
	}
	return e.dependencies[i]
}

// doubt has a dependency asked that a turn has found to be out. It reports
// whether that is known already: then the lane need not wait for itself.
func (e *Engine) doubt(w *watched) (known bool) {
	select {
	case w.doubted <- struct{}{}:
	default:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return w.out != nil && !w.Optional
}

// hear notes that a dependency has answered. It runs for every turn: in the
// common case it reads what nobody writes.
func (w *watched) hear() {
	if !w.heard.Load() {
		w.heard.Store(true)
	}
}

// state is called with the engine's mutex held.
func (w *watched) state() error {
	if w.out == nil {
		return nil
	}
	return fmt.Errorf("%s has been out for %s: %w", w.Name, time.Since(w.since).Round(time.Second), w.out)
}

// Check reports whether the worker takes tasks, and if not, why: it has not joined
// its group, has been told to stop, or something that it needs is out.
func (e *Engine) Check(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.draining {
		return errors.New("draining: no more turns start here")
	}
	var errs []error
	if !e.joined.Load() {
		errs = append(errs, errors.New("not a member of the consumer group yet"))
	}
	for _, w := range e.dependencies {
		if !w.Optional {
			errs = append(errs, w.state())
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) initDependencies() {
	e.kafka = e.newWatched(Dependency{Name: millrace.Kafka})
	e.dependencies = []*watched{e.kafka}
	for _, d := range e.cfg.Dependencies {
		w := e.newWatched(d)
		e.dependencies = append(e.dependencies, w)
		if d.Name == millrace.Postgres {
			e.postgres = w
		}
	}
	if e.postgres == nil { // commits are noted there in any case
		e.postgres = &watched{}
	}
	e.breakers = breakers{engine: e, all: make(map[breakerKey]*breaker)}
}
