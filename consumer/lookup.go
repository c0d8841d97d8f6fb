package consumer

import (
	"context"
	"time"

	"millrace"
)

// What was in the log when this worker began to read it may have been run by an
// earlier owner. Such records are looked up in bulk on their way from the fetch
// to their lanes, so that a backlog costs a query for thousands of them rather
// than a wait in a slot for each.

// fetched is what a fetch brought of one partition.
type fetched struct {
	part  *partition
	items []*item
}

// maxLookUp bounds the records of one query.
const maxLookUp = 5000

// lookUpLoop looks up what waits for it, higher priorities first. Within a
// partition order is kept.
func (e *Engine) lookUpLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.unlooked:
		}
		for {
			batch, releases := e.takeUnlooked()
			if len(batch) == 0 {
				break
			}
			found, ok := e.lookUp(ctx, batch)
			if !ok {
				return
			}
			e.putLookedUp(batch, found, releases)
		}
	}
}

// takeUnlooked also returns how many holds had been released by then.
func (e *Engine) takeUnlooked() (batch []fetched, releases uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for p := range e.toLookUp {
		for len(e.toLookUp[p]) > 0 && n < maxLookUp {
			f := e.toLookUp[p][0]
			e.toLookUp[p] = e.toLookUp[p][1:]
			batch = append(batch, f)
			n += len(f.items)
		}
	}
	return batch, e.releases
}

// lookUp asks until it has an answer, or ctx ends.
func (e *Engine) lookUp(ctx context.Context, batch []fetched) (found map[millrace.Key]bool, ok bool) {
	var keys []millrace.Key
	for _, f := range batch {
		for _, it := range f.items {
			if it.lookUp && it.task.Redrive == 0 {
				keys = append(keys, it.task.Key())
			}
		}
	}
	for try := 1; ; try++ {
		found, err := e.cfg.Store.Completed(ctx, keys)
		if err == nil {
			return found, true
		}
		if ctx.Err() != nil {
			return nil, false
		}
		delay := fullJitter(200*time.Millisecond, 5*time.Second, try)
		if heldBack, log := e.outages.allow(time.Now()); log {
			e.log.Warn().Err(err).Dur("retry_in", delay).Int("not_logged", heldBack).
				Msg("cannot look up which tasks are complete; they wait")
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, false
		case <-timer.C:
		}
	}
}

// putLookedUp queues what is not complete.
func (e *Engine) putLookedUp(batch []fetched, found map[millrace.Key]bool, releases uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	seen := make(map[millrace.Key]bool, len(batch))
	for _, f := range batch {
		f.part.unlooked--
		for _, it := range f.items {
			switch {
			case f.part.revoked:
				e.waiting[it.priority] -= it.size
			case it.lookUp && found[it.task.Key()]:
				f.part.tracker.done(it.record.Offset)
				e.waiting[it.priority] -= it.size
				e.metrics.redeliveries.Inc()
			default:
				// The turn of an earlier owner may have completed the task since: it did when
				// its hold was released, at the latest. So may the same task before this one,
				// which a sender's repeat has put into the log again.
				key := it.task.Key()
				it.lookUp = it.lookUp && (it.task.Redrive > 0 || e.releases != releases || seen[key])
				seen[key] = true
				e.queue(it, now)
			}
		}
		e.adjustIntake(f.part)
	}
	e.dispatch()
}

// queue puts an item into its lane. Its caller holds the mutex.
func (e *Engine) queue(it *item, now time.Time) {
	l := e.laneOf(it)
	l.push(it)
	e.makeReady(l, now)
}
