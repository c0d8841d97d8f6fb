package consumer

import (
	"context"
	"time"

	"millrace"
)

// A record that no turn has reached yet needs no look-up, however long it has
// been in the log. How far turns may have come is kept beside the completions
// that a look-up would find: before the first record at or above a partition's
// fence goes into its lane, the fence is raised, and durably so. The next owner
// looks up what is below the fence that it finds. Kafka's offsets could not say
// it: they expire, and operators set them back.

// Fences keeps the fences of partitions.
type Fences interface {
	// RaiseFences makes it durable that records below fences may be started, and
	// returns what was durable before, in the same order: math.MaxInt64 where nobody
	// knows. A fence that is higher already stays.
	RaiseFences(ctx context.Context, fences []millrace.Fence) ([]int64, error)
}

// defaultFenceStep is how far a fence is raised beyond what needs it: at most so
// many records of a partition are looked up that nobody has started.
const defaultFenceStep = 50_000

// beyondFence reports whether a record may not be started yet, and asks for the
// fence to be raised before that comes to hold anything up. Its caller holds the
// mutex.
func (e *Engine) beyondFence(p *partition, offset int64) bool {
	if e.cfg.Fences == nil {
		return false
	}
	if p.fence >= 0 && p.fence-offset <= e.fenceStep/2 {
		signal(e.fencing)
	}
	return offset >= p.fence
}

// fenceLoop raises fences ahead of those who need it.
func (e *Engine) fenceLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.fencing:
		}
		var parts []*partition
		e.mu.Lock()
		for _, p := range e.parts {
			if !p.revoked && p.fence >= 0 && p.fence-p.tracker.last <= e.fenceStep/2 {
				parts = append(parts, p)
			}
		}
		e.mu.Unlock()
		if len(parts) > 0 && !e.raiseFences(ctx, parts) {
			return
		}
	}
}

// passFences raises the fences that keep a batch from its lanes. It reports
// whether they are raised: they are not when ctx has ended.
func (e *Engine) passFences(ctx context.Context, batch []fetched) bool {
	if e.cfg.Fences == nil {
		return true
	}
	var parts []*partition
	seen := make(map[*partition]bool)
	e.mu.Lock()
	for _, f := range batch {
		if n := len(f.items); n > 0 && !f.part.revoked && !seen[f.part] && f.items[n-1].offset >= f.part.fence {
			seen[f.part] = true
			parts = append(parts, f.part)
		}
	}
	e.mu.Unlock()
	if len(parts) > 0 && !e.raiseFences(ctx, parts) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range batch {
		for _, it := range f.items {
			f.part.setLookUp(it)
		}
	}
	return true
}

// raiseFences tries until it has raised the fences of parts, or ctx ends.
func (e *Engine) raiseFences(ctx context.Context, parts []*partition) bool {
	fences := make([]millrace.Fence, len(parts))
	e.mu.Lock()
	for i, p := range parts {
		fences[i] = millrace.Fence{TopicID: p.topicID, Partition: p.tp.partition, Below: p.tracker.last + 1 + e.fenceStep}
	}
	e.mu.Unlock()
	for try := 1; ; try++ {
		before, err := e.cfg.Fences.RaiseFences(ctx, fences)
		if err == nil {
			e.mu.Lock()
			for i, p := range parts {
				if p.fence < 0 {
					p.lookUpBelow = min(p.lookUpBelow, before[i])
				}
				p.fence = max(p.fence, fences[i].Below)
			}
			e.mu.Unlock()
			return true
		}
		if !e.pauseAfter(ctx, err, try, "cannot tell how far the partitions are started; their tasks wait") {
			return false
		}
	}
}

// pauseAfter waits a while after a failure. It reports whether to try again.
func (e *Engine) pauseAfter(ctx context.Context, err error, try int, what string) bool {
	if ctx.Err() != nil {
		return false
	}
	delay := fullJitter(200*time.Millisecond, 5*time.Second, try)
	if heldBack, log := e.outages.allow(time.Now()); log {
		e.log.Warn().Err(err).Dur("retry_in", delay).Int("not_logged", heldBack).Msg(what)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// setLookUp says whether an item is to be looked up.
func (p *partition) setLookUp(it *item) {
	it.lookUp = it.invalid == nil && (it.offset < p.lookUpBelow || it.task.Redrive > 0)
	it.inherited = it.lookUp && it.task.OnBusy == millrace.BusyCoalesce
}

// noFence is the fence of a partition for which none has been raised here yet.
const noFence = -1
