package consumer

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"millrace"
)

const (
	// breakAfter is how many turns in a row a dependency fails before those of their
	// type are held.
	breakAfter = 5
	// The delay between two probes doubles from holdMin to holdMax; half of it is
	// random.
	holdMin, holdMax = 200 * time.Millisecond, 10 * time.Second
	// probeFor is how long a probe may run before another turn is let through: one
	// that does something else for an hour first must not decide for all.
	probeFor = 30 * time.Second
	// forgetAfter is how long failures count that nothing has followed.
	forgetAfter = time.Minute
)

// Which turns call a dependency is known only once they have: so what is held
// when one is out is a type of tasks.
type breakerKey struct{ dependency, taskType string }

// breaker counts the failures of a dependency under turns of one type, from the
// first on until it has answered one. A breaker that has ended is never used
// again.
type breaker struct {
	key      breakerKey
	failures int
	// first is the task that failed first, several that others did as well.
	first   millrace.Key
	several bool
	last    time.Time
	// answered says that the dependency has answered a turn since: so a task that
	// fails again may be at fault itself.
	answered bool

	open   bool
	since  time.Time // it is open
	tries  int
	timer  *time.Timer
	parked map[*lane]struct{}
	// probe is the item that is let through. due says that the next one is, since
	// none waited when its time had come.
	probe    *item
	probedAt time.Time
	due      bool
}

// breakers are those of all dependencies that the engine cannot ask itself. They
// are guarded by the engine's mutex.
type breakers struct {
	engine *Engine
	all    map[breakerKey]*breaker
	// open holds those that are. Usually there are none.
	open []*breaker
	// known is len(all), for who does not hold the mutex.
	known atomic.Int32
}

// Reached implements [millrace.Dependencies]. As long as nothing fails, it is a
// look at a number that does not change.
func (b *breakers) Reached(task *millrace.Task, dependency string) {
	if b.known.Load() == 0 {
		return
	}
	e := b.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	br := b.all[breakerKey{dependency, task.Type}]
	if br == nil {
		return
	}
	br.answered = true
	b.end(br, time.Now())
	e.dispatch()
}

// blame books that a dependency was out for an item. It reports whether the task
// itself is to blame: it failed before, others got through to the dependency since,
// and none but this one fails now. Otherwise held says that a breaker decides when
// the item is tried again.
func (b *breakers) blame(it *item, dependency string, now time.Time) (own, held bool) {
	key := breakerKey{dependency, it.task.Type}
	br := b.all[key]
	if br == nil || !br.open && now.Sub(br.last) > forgetAfter {
		b.forget(now)
		br = &breaker{key: key, first: it.task.Key(), parked: make(map[*lane]struct{})}
		b.all[key] = br
		b.known.Store(int32(len(b.all))) //nolint:gosec // bounded by what fails within a minute
	}
	br.several = br.several || br.first != it.task.Key()
	before := it.failedUnder
	it.failedUnder = br
	br.failures++
	br.last = now
	switch {
	case br.open:
		if br.probe == it {
			b.engine.metrics.breakerProbes.WithLabelValues(dependency, "failed").Inc()
			br.probe = nil
			br.tries++
			b.probeIn(br, holdDelay(br.tries))
		}
	case before != nil && before != br && before.answered && !br.several:
		return true, false
	case br.failures >= breakAfter:
		b.trip(br, now)
	}
	return false, br.open
}

func holdDelay(try int) time.Duration {
	d := min(holdMin<<min(try, 10), holdMax)
	return d/2 + rand.N(d/2) //nolint:gosec // spreads probes, guards nothing
}

// trip opens a breaker and parks the lanes that wait for a slot with a task of
// its type.
func (b *breakers) trip(br *breaker, now time.Time) {
	e := b.engine
	br.open, br.since = true, now
	b.open = append(b.open, br)
	e.metrics.breakerOpen.WithLabelValues(br.key.dependency).Inc()
	e.metrics.breakerOpened.WithLabelValues(br.key.dependency).Inc()
	e.log.Warn().Str("dependency", br.key.dependency).Str("type", br.key.taskType).Int("failures", br.failures).
		Msg("a dependency is out; tasks of the type that calls it wait, but for one at a time")
	for _, l := range e.lanes {
		if l.ready.queue != nil {
			e.makeReady(l, now)
		}
	}
	b.probeIn(br, holdDelay(0))
}

// probeIn lets one item through after a delay.
func (b *breakers) probeIn(br *breaker, delay time.Duration) {
	if br.timer != nil {
		br.timer.Stop()
	}
	br.timer = time.AfterFunc(delay, func() {
		e := b.engine
		e.mu.Lock()
		defer e.mu.Unlock()
		// A timer that has fired and waits for the mutex may find the breaker closed,
		// or set anew with a probe that has just been let through.
		if br.open && !e.draining {
			b.letOneThrough(br, time.Now())
			e.dispatch()
		}
	})
}

// letOneThrough picks the item of the highest priority that can run now, and of
// those the one that came first. When none waits, the next that comes is it.
func (b *breakers) letOneThrough(br *breaker, now time.Time) {
	if br.probe != nil && now.Sub(br.probedAt) < probeFor {
		return
	}
	br.probe = nil
	var chosen *lane
	for l := range br.parked {
		if chosen == nil || before(l.head(), chosen.head(), now) {
			chosen = l
		}
	}
	if chosen == nil {
		br.due = true
		return
	}
	b.choose(br, chosen.head(), now)
	b.engine.makeReady(chosen, now)
}

func (b *breakers) choose(br *breaker, it *item, now time.Time) {
	br.probe, br.probedAt, br.due = it, now, false
	it.probing = true
	b.probeIn(br, probeFor)
}

// before reports whether item a is the better probe.
func before(a, b *item, now time.Time) bool {
	if waitsA, waitsB := a.notBefore.After(now), b.notBefore.After(now); waitsA != waitsB {
		return waitsB
	}
	if a.priority != b.priority {
		return a.priority < b.priority
	}
	return a.task.Time.Before(b.task.Time)
}

// exempt reports whether an item waits for no breaker: its handler does not run
// any more, or so it is said.
func (b *breakers) exempt(it *item, now time.Time) bool {
	if it.invalid != nil || it.givenUp != nil || it.final != nil || it.endedBy.Load() != nil || b.engine.cancels.has(it.task.Key()) {
		return true
	}
	d := it.task.Deadline
	return !d.IsZero() && !now.Before(d)
}

// holding returns the breaker that an item has to wait for.
func (b *breakers) holding(it *item, now time.Time) *breaker {
	if len(b.open) == 0 || b.exempt(it, now) {
		return nil
	}
	for _, br := range b.open {
		if br.key.taskType != it.task.Type || br.probe == it {
			continue
		}
		if br.due {
			b.choose(br, it, now)
			continue
		}
		return br
	}
	return nil
}

// park makes a lane wait for a breaker, or until its task's deadline.
func (b *breakers) park(br *breaker, l *lane, it *item, now time.Time) {
	br.parked[l] = struct{}{}
	l.parked = br
	if d := it.task.Deadline; !d.IsZero() {
		b.engine.wake(l, d.Sub(now))
	}
}

// unpark takes a lane out of where it waits.
func (l *lane) unpark() {
	if l.parked != nil {
		delete(l.parked.parked, l)
		l.parked = nil
	}
}

// passed books that a probe's handler has returned nil: whoever did not say that
// the dependency answered it (millrace.Turn.Reached) did without it, or does not
// say so. The breaker ends either way, and is back after as many failures.
func (b *breakers) passed(it *item) {
	e := b.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, br := range append([]*breaker(nil), b.open...) {
		if br.probe == it {
			b.end(br, now)
		}
	}
	e.dispatch()
}

// undecided lets another item through in place of a probe that has ended without
// saying anything about the dependency. Its caller holds the mutex.
func (b *breakers) undecided(it *item) {
	it.probing = false
	for _, br := range b.open {
		if br.probe == it {
			br.probe = nil
			b.probeIn(br, holdDelay(0))
		}
	}
}

// end closes a breaker, if it is open, and forgets it.
func (b *breakers) end(br *breaker, now time.Time) {
	delete(b.all, br.key)
	b.known.Store(int32(len(b.all))) //nolint:gosec // as above
	if !br.open {
		return
	}
	e := b.engine
	br.open = false
	for i, other := range b.open {
		if other == br {
			b.open = append(b.open[:i], b.open[i+1:]...)
			break
		}
	}
	if br.timer != nil {
		br.timer.Stop()
	}
	if br.probe != nil {
		e.metrics.breakerProbes.WithLabelValues(br.key.dependency, "answered").Inc()
	}
	br.probe = nil
	e.metrics.breakerOpen.WithLabelValues(br.key.dependency).Dec()
	e.log.Info().Str("dependency", br.key.dependency).Str("type", br.key.taskType).Dur("out_for", now.Sub(br.since)).
		Msg("a dependency answers again")
	for l := range br.parked {
		e.makeReady(l, now)
	}
}

// forget drops what has failed a few times long ago: types come from outside, and
// there may be many.
func (b *breakers) forget(now time.Time) {
	for key, br := range b.all {
		if !br.open && now.Sub(br.last) > forgetAfter {
			delete(b.all, key)
		}
	}
}

// stop ends the timers. The engine drains.
func (b *breakers) stop() {
	for _, br := range b.open {
		if br.timer != nil {
			br.timer.Stop()
		}
	}
}

// unavailable decides what becomes of a turn that a dependency's outage has
// ended, unless the task itself is to blame: then it has failed.
func (e *Engine) unavailable(ctx context.Context, l *lane, it *item, err error, stack string) verdict {
	own, held := e.dependencyOut(it, err)
	if own {
		return e.failed(ctx, l, it, err, stack)
	}
	return e.hold(ctx, it, err, held)
}

// outage is unavailable for what is not the handler's doing.
func (e *Engine) outage(ctx context.Context, it *item, err error) verdict {
	_, held := e.dependencyOut(it, err)
	return e.hold(ctx, it, err, held)
}

// dependencyOut tells of an outage. It reports whether the task itself is to
// blame, and whether somebody sees to it that the dependency is asked, so that
// the lane need not.
func (e *Engine) dependencyOut(it *item, err error) (own, held bool) {
	name := millrace.DependencyOf(err)
	if w := e.watchedOf(name); w != nil {
		return false, e.doubt(w)
	}
	switch name {
	case "":
		return false, false
	case millrace.Postgres, millrace.Redis, millrace.Kafka:
		return false, false // nobody watches it here, and it is out for all types
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	own, held = e.breakers.blame(it, name, now)
	return own, held && !e.breakers.exempt(it, now)
}

// hold keeps the lane waiting without counting an attempt.
func (e *Engine) hold(ctx context.Context, it *item, err error, held bool) verdict {
	if ctx.Err() != nil {
		return verdict{kind: dropped}
	}
	it.outages++
	it.lastError = err
	e.metrics.turns.WithLabelValues(string(it.task.Priority), "outage").Inc()
	var delay time.Duration
	if !held {
		delay = fullJitter(200*time.Millisecond, 5*time.Second, it.outages)
	}
	var after *millrace.RetryAfterError
	if errors.As(err, &after) {
		delay = max(delay, min(after.Delay, maxRetryAfter))
	}
	if d := it.task.Deadline; !d.IsZero() {
		delay = min(delay, time.Until(d)) // to be given up in time
	}
	// An outage ends the turns of all lanes again and again.
	if heldBack, ok := e.outages.allow(time.Now()); ok {
		e.log.Warn().Err(err).Str("dependency", millrace.DependencyOf(err)).Str("task", it.task.ID).Dur("retry_in", delay).
			Int("not_logged", heldBack).Msg("a turn needs a dependency that is out; no attempt is counted")
	}
	return verdict{kind: retry, delay: delay}
}
