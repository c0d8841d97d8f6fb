package bench

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
)

const latencyRate = 200

// latency measures how long a task waits for its turn when nothing stands in
// its way.
func (r *engineRun) latency(ctx context.Context) error {
	s, err := r.place.topics(ctx, "latency")
	if err != nil {
		return err
	}
	// The first second is the group's and the connections'.
	warmUp := latencyRate
	p, err := newPaced(r.place.client, s.TaskTopic(millrace.Normal), latencyRate, warmUp+int(r.Window.Seconds()*2*latencyRate))
	if err != nil {
		return err
	}
	defer p.close()
	handler := func(_ context.Context, turn *millrace.Turn) error {
		p.started(turn.Task())
		return nil
	}
	say(r.env.Progress, "engine.latency: %d tasks, %d a second", p.n, p.rate)
	err = r.withWorker(ctx, s, handler, func(ctx context.Context, registry *prometheus.Registry) error {
		if err := joined(ctx, registry, len(s.Priorities)); err != nil {
			return err
		}
		return p.run(ctx)
	})
	if err != nil {
		return err
	}
	sent, available := p.waits(warmUp)
	for _, result := range []Result{
		AtMost("engine.latency.p50", quantile(available, 0.50), "ms", 2),
		AtMost("engine.latency.p99", quantile(available, 0.99), "ms", 5),
		Plain("engine.latency.send.p50", quantile(sent, 0.50), "ms"),
		Plain("engine.latency.send.p99", quantile(sent, 0.99), "ms"),
	} {
		if err := r.report(result); err != nil {
			return err
		}
	}
	return nil
}
