package consumer

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Intake is bounded by pausing partitions, never by waiting in the poll loop:
// high and low water keep a partition from flapping.

// adjustIntake asks for a look at what is to be paused, when there may be
// something to do. Its caller holds the mutex.
func (e *Engine) adjustIntake() {
	for _, p := range e.parts {
		if e.wantPaused(p) != p.paused {
			select {
			case e.intake <- struct{}{}:
			default:
			}
			return
		}
	}
}

func (e *Engine) wantPaused(p *partition) bool {
	if p.paused {
		return e.waiting > e.cfg.IntakeBytes/2 || p.tracker.spread() > e.cfg.IntakeOffsets/2
	}
	return e.waiting > e.cfg.IntakeBytes || p.tracker.spread() > e.cfg.IntakeOffsets
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
		cl.PauseFetchPartitions(pause)
		cl.ResumeFetchPartitions(resume)
		e.metrics.paused.Set(float64(paused))
		e.mu.Unlock()
	}
}
