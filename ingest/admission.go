package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"millrace"
)

// LagSample is how far the workers are behind on one priority.
type LagSample struct {
	// Records is how many tasks wait or run.
	Records int64
	// Age is how long the oldest of them has waited.
	Age time.Duration
	// DrainRate is how many tasks a second the backlog loses. 0 or less: it
	// does not shrink, or nobody knows.
	DrainRate float64
}

// LagReader tells how far the workers are behind. A priority that is missing in
// its answer is unknown, not idle.
type LagReader interface {
	Lag(ctx context.Context) (map[millrace.Priority]LagSample, error)
}

// Bounds on Retry-After, and what it is when the drain rate says nothing.
const (
	maxRetryAfter     = 2 * time.Minute
	unknownRetryAfter = 15 * time.Second
)

type timedSample struct {
	LagSample
	at time.Time
}

// admission refuses tasks that the workers are too far behind to take.
type admission struct {
	cfg      *Config
	metrics  *metrics
	failures zerolog.Logger
	now      func() time.Time
	samples  atomic.Pointer[map[millrace.Priority]timedSample]
}

func newAdmission(cfg *Config, m *metrics, failures zerolog.Logger) *admission {
	a := &admission{cfg: cfg, metrics: m, failures: failures, now: time.Now}
	a.samples.Store(&map[millrace.Priority]timedSample{})
	return a
}

func (a *admission) run(ctx context.Context) {
	if a.cfg.Lag == nil {
		return
	}
	tick := time.NewTicker(a.cfg.LagInterval)
	defer tick.Stop()
	for {
		a.refresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// refresh reads the lag once. What it cannot read keeps its last value.
func (a *admission) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.ReadTimeout)
	defer cancel()
	read, err := a.cfg.Lag.Lag(ctx)
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) { // that is the stop
			a.metrics.lagErrors.Inc()
			a.failures.Warn().Err(err).Msg("read lag for admission")
		}
		return
	}
	now := a.now()
	next := make(map[millrace.Priority]timedSample, len(a.cfg.Priorities))
	for p, sample := range *a.samples.Load() {
		next[p] = sample
	}
	for p, sample := range read {
		next[p] = timedSample{LagSample: sample, at: now}
	}
	a.samples.Store(&next)
}

// admit returns nil, or the problem to refuse a task of priority p with. A
// higher priority above its bound refuses the lower ones as well: the workers
// that would run them are the ones that do not keep up.
func (a *admission) admit(p millrace.Priority) *Problem {
	if a.cfg.Lag == nil {
		return nil
	}
	samples, now := *a.samples.Load(), a.now()
	for _, q := range a.cfg.Priorities {
		if sample, ok := samples[q]; !ok || now.Sub(sample.at) > a.cfg.LagKeep {
			if q == p {
				a.metrics.lagUnknown.WithLabelValues(string(p)).Inc()
			}
		} else if problem := a.judge(p, q, sample.LagSample); problem != nil {
			return problem
		}
		if q == p {
			break
		}
	}
	return nil
}

func (a *admission) judge(p, q millrace.Priority, sample LagSample) *Problem {
	bound := a.cfg.MaxLag[q]
	if bound == 0 {
		bound = defaultMaxLag
	}
	var detail string
	wait := unknownRetryAfter
	switch maxAge := a.cfg.MaxLagAge[q]; {
	case bound > 0 && sample.Records > bound:
		detail = fmt.Sprintf("%d tasks of priority %s wait, the bound is %d", sample.Records, q, bound)
		if sample.DrainRate > 0 {
			wait = time.Duration(min(float64(sample.Records-bound)/sample.DrainRate, maxRetryAfter.Seconds()) * float64(time.Second))
		}
	case maxAge > 0 && sample.Age > maxAge:
		detail = fmt.Sprintf("the oldest task of priority %s waits since %s, the bound is %s", q, sample.Age.Round(time.Second), maxAge)
	default:
		return nil
	}
	if p != q {
		detail += "; lower priorities are refused along with it"
	}
	return overloaded.problem("%s", detail).retry(max(wait, time.Second))
}
