package consumer

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Intake is bounded by pausing partitions: high and low water keep a partition
// from flapping. The poll loop itself waits for a moment at most.

// Every priority has a share of the bytes, so that a backlog of a lower one
// never keeps a higher one from being read.

// adjustIntake asks for a look at what is to be paused, when something of p or
// its priority has changed. It runs for every record: it looks at no other
// partition. Its caller holds the mutex.
func (e *Engine) adjustIntake(p *partition) {
	total := int64(0)
	for _, n := range e.waiting {
		total += n
	}
	e.metrics.waitingBytes.Set(float64(total))
	e.metrics.lanes.Set(float64(len(e.lanes)))
	bound := e.cfg.IntakeBytes / int64(len(e.waiting))
	waiting := e.waiting[p.priority]
	if full := waiting > bound; full != e.full[p.priority] {
		e.full[p.priority] = full
		if !full {
			signal(e.room)
		}
	}
	if e.stuck[p.priority] && waiting <= bound/2 {
		e.stuck[p.priority] = false
		e.lookAtIntake()
	} else if e.wantPaused(p) != p.paused {
		e.lookAtIntake()
	}
}

// patience is how long the poll loop waits for room before what is full is paused.
// The client throws away what it has fetched of a partition that is paused, and
// fetches it anew later: for turns that end at once that costs more than they do.
const patience = 10 * time.Millisecond

// awaitRoom waits for a moment while a priority is full, and has it paused if it
// stays so.
func (e *Engine) awaitRoom(ctx context.Context) {
	if !e.filling() {
		return
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case <-e.room:
			if !e.filling() {
				return
			}
		case <-limit.C:
			e.mu.Lock()
			for i, full := range e.full {
				e.stuck[i] = e.stuck[i] || full
			}
			e.mu.Unlock()
			e.lookAtIntake()
			return
		case <-ctx.Done():
			return
		}
	}
}

// filling reports whether a priority is full that is not paused yet.
func (e *Engine) filling() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, full := range e.full {
		if full && !e.stuck[i] {
			return true
		}
	}
	return false
}

func (e *Engine) lookAtIntake() { signal(e.intake) }

// signal leaves word in a channel with room for one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (e *Engine) wantPaused(p *partition) bool {
	bound := e.cfg.IntakeOffsets
	if p.paused {
		bound /= 2
	}
	return e.stuck[p.priority] || p.tracker.spread() > bound
}

func (e *Engine) intakeLoop(ctx context.Context, cl *kgo.Client) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.intake:
		}
		e.mu.Lock()
		pause, resume := make(map[string][]int32), make(map[string][]int32)
		paused := 0
		for tp, p := range e.parts {
			want := e.wantPaused(p)
			if want {
				paused++
			}
			if want == p.paused {
				continue
			}
			p.paused = want
			if want {
				pause[tp.topic] = append(pause[tp.topic], tp.partition)
			} else {
				resume[tp.topic] = append(resume[tp.topic], tp.partition)
			}
		}
		// Under the mutex, so that a partition that is being forgotten is not paused
		// after it was resumed for good.
		if len(pause) > 0 {
			cl.PauseFetchPartitions(pause)
		}
		if len(resume) > 0 {
			cl.ResumeFetchPartitions(resume)
		}
		e.metrics.paused.Set(float64(paused))
		e.mu.Unlock()
	}
}
