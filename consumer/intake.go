package consumer

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Intake is bounded by pausing partitions, never by waiting in the poll loop:
// high and low water keep a partition from flapping.

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
	if e.full[p.priority] {
		bound /= 2
	}
	full := e.waiting[p.priority] > bound
	if full != e.full[p.priority] {
		e.full[p.priority] = full
		e.lookAtIntake()
	} else if e.wantPaused(p) != p.paused {
		e.lookAtIntake()
	}
}

func (e *Engine) lookAtIntake() {
	select {
	case e.intake <- struct{}{}:
	default:
	}
}

func (e *Engine) wantPaused(p *partition) bool {
	bound := e.cfg.IntakeOffsets
	if p.paused {
		bound /= 2
	}
	return e.full[p.priority] || p.tracker.spread() > bound
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
