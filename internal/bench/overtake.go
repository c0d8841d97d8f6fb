package bench

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
	"millrace/internal/settings"
)

const (
	overtakeRate = 50
	overtakeWork = 100 * time.Millisecond
)

// overtake measures how much longer tasks of the first priority wait when the
// last one has a backlog that keeps all slots busy.
func (r *engineRun) overtake(ctx context.Context) error {
	s, err := r.place.topics(ctx, "overtake")
	if err != nil {
		return err
	}
	alone, err := r.highWaits(ctx, s, 0)
	if err != nil {
		return err
	}
	backlog := max(1, r.Records/2)
	if err := preload(ctx, r.place.client, load{
		topic: s.TaskTopic(millrace.Batch), records: backlog, keys: Keys(10_000),
	}, r.env.Progress); err != nil {
		return err
	}
	behind, err := r.highWaits(ctx, s, backlog)
	if err != nil {
		return err
	}
	without, with := quantile(alone, 0.99), quantile(behind, 0.99)
	if err := r.report(Plain("engine.overtake.alone", without, "ms")); err != nil {
		return err
	}
	return r.report(AtMost("engine.overtake", with, "ms", max(1.5*without, without+5)))
}

// highWaits runs a worker on a steady trickle of high tasks and returns how long
// they waited.
func (r *engineRun) highWaits(ctx context.Context, s settings.Settings, backlog int) ([]time.Duration, error) {
	warmUp := overtakeRate
	p, err := newPaced(r.place.client, s.TaskTopic(millrace.High), overtakeRate, warmUp+int(r.Window.Seconds()*2*overtakeRate))
	if err != nil {
		return nil, err
	}
	defer p.close()
	var (
		once  sync.Once
		begun = make(chan struct{})
		batch atomic.Int64
	)
	handler := func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().Priority == millrace.High {
			p.started(turn.Task())
		} else {
			batch.Add(1)
			once.Do(func() { close(begun) })
		}
		return pause(ctx, overtakeWork)
	}
	say(r.env.Progress, "engine.overtake: %d high tasks, %d a second, behind a backlog of %d", p.n, p.rate, backlog)
	err = r.withWorker(ctx, s, handler, func(ctx context.Context, registry *prometheus.Registry) error {
		if err := joined(ctx, registry, len(s.Priorities)); err != nil {
			return err
		}
		if backlog > 0 {
			if err := await(ctx, begun, startLimit, "no turn of the backlog"); err != nil {
				return err
			}
			if err := pause(ctx, 3*time.Second); err != nil {
				return err
			}
		}
		return p.run(ctx)
	})
	if err != nil {
		return nil, err
	}
	if backlog > 0 && batch.Load() >= int64(backlog) {
		return nil, errBacklogGone
	}
	_, available := p.waits(warmUp)
	return available, nil
}
