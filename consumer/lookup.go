package consumer

import (
	"context"
	"sync"
	"time"

	"millrace"
)

// What was in the log when this worker began to read it may have been run by an
// earlier owner, up to the partition's fence. Such records are looked up in bulk on their way from the fetch
// to their lanes, so that a backlog costs a query for thousands of them rather
// than a wait in a slot for each.

// fetched is what a fetch brought of one partition.
type fetched struct {
	part  *partition
	items []*item
}

// maxLookUp bounds the records of one query.
const maxLookUp = 5000

// lookedUp is what has been looked up and waits for its lanes.
type lookedUp struct {
	batch []fetched
	found map[millrace.Key]bool
	// releases is how many holds had been released before.
	releases uint64
}

// lookUpLoop looks up what waits for it, higher priorities first. Within a
// partition order is kept. While one answer goes into its lanes, the next is
// asked for.
func (e *Engine) lookUpLoop(ctx context.Context) {
	answers := make(chan lookedUp, 1)
	var queuing sync.WaitGroup
	queuing.Go(func() {
		for a := range answers {
			e.putLookedUp(a)
		}
	})
	defer queuing.Wait()
	defer close(answers)
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
			if !e.passFences(ctx, batch) {
				return
			}
			found, ok := e.lookUp(ctx, batch)
			if !ok {
				return
			}
			e.recallBatch(ctx, batch)
			answers <- lookedUp{batch, found, releases}
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
	if len(keys) == 0 {
		return nil, true
	}
	for try := 1; ; try++ {
		found, err := e.cfg.Store.Completed(ctx, keys)
		if err == nil {
			return found, true
		}
		if !e.pauseAfter(ctx, err, try, "cannot look up which tasks are complete; they wait") {
			return nil, false
		}
	}
}

// lanesAtATime bounds how many items go into lanes before the mutex is given
// back: turns wait for it.
const lanesAtATime = 100

// putLookedUp queues what is not complete.
func (e *Engine) putLookedUp(a lookedUp) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	n := 0
	for _, f := range a.batch {
		for _, it := range f.items {
			if n++; n%lanesAtATime == 0 {
				e.dispatch()
				e.mu.Unlock()
				e.mu.Lock()
			}
			switch {
			case f.part.revoked:
				e.waiting[it.priority] -= it.size
			case it.lookUp && a.found[it.task.Key()]:
				f.part.tracker.done(it.offset)
				e.waiting[it.priority] -= it.size
				e.metrics.redeliveries.Inc()
				if it.recorded {
					e.noteForget(it) // its worker died before it could
				}
			default:
				// The turn of an earlier owner may have completed the task since: it did when
				// its hold was released, at the latest.
				it.recall = it.lookUp && e.releases != a.releases
				it.lookUp = it.lookUp && (it.task.Redrive > 0 || e.releases != a.releases)
				e.queue(it, now)
			}
		}
		// Only now: what is fetched of the partition until then comes after these.
		f.part.unlooked--
		e.adjustIntake(f.part)
	}
	e.dispatch()
}

// queue puts an item into its lane. Its caller holds the mutex.
func (e *Engine) queue(it *item, now time.Time) {
	if it.invalid == nil && e.repeats.again(it.task.ID) {
		it.lookUp = true
	}
	l := e.laneOf(it)
	if it.task.OnBusy != "" && e.rejected(l, it) {
		e.makeReady(l, now) // it may have been made for the item alone
		l = e.laneAside(it)
	}
	l.push(it)
	e.makeReady(l, now)
}
