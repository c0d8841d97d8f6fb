package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
	"millrace/internal/app"
	"millrace/internal/ops"
	"millrace/internal/settings"
)

var errWorkerEnded = errors.New("the worker ended before the measurement")

// withWorker runs a worker, wired as in the product, for as long as measure
// runs. The worker has drained and committed when it returns.
func (r *run) withWorker(ctx context.Context, s settings.Settings, handler millrace.HandlerFunc,
	measure func(ctx context.Context, registry *prometheus.Registry) error,
) error {
	registry := ops.NewRegistry("bench")
	process, err := app.NewProcess(s, r.env.Log, registry)
	if err != nil {
		return err
	}
	worker, err := app.NewWorker(ctx, process, handler)
	if err != nil {
		return err
	}
	defer worker.Close()
	// The worker outlives an interrupt until the measurement has noticed it.
	workerCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	measureCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	stopProfile := r.env.Measuring()
	go func() {
		err := worker.Run(workerCtx)
		cancel(errWorkerEnded)
		ended <- err
	}()
	err = measure(measureCtx, registry)
	if err != nil && errors.Is(context.Cause(measureCtx), errWorkerEnded) {
		err = errWorkerEnded
	}
	stopProfile()
	stop()
	return errors.Join(err, <-ended)
}

// await waits for what is to happen, for at most limit without it.
func await(ctx context.Context, happened <-chan struct{}, limit time.Duration, what string) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-happened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("%s after %s", what, limit)
	}
}

// pause lets time pass.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// metric returns the value of a gauge, or the sum of a counter over its labels.
func metric(registry *prometheus.Registry, name string) (float64, error) {
	families, err := registry.Gather()
	if err != nil {
		return 0, fmt.Errorf("gather metrics: %w", err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		sum := 0.0
		for _, m := range family.GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
		return sum, nil
	}
	return 0, fmt.Errorf("no metric %s", name)
}
