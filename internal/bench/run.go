package bench

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"millrace/internal/settings"
)

// Env is what benchmarks run in.
type Env struct {
	// Settings say where the services are. Topics, database, pool, slots and
	// results are the benchmark's own. Required.
	Settings settings.Settings
	// Measuring is called when a worker begins to run the load, and what it returns
	// when it has: a place for a profiler. Nil: nothing is called.
	Measuring func() (stop func())
	// Progress tells people what takes long. Nil: nobody.
	Progress io.Writer
	Log      zerolog.Logger
}

// run is one call of a benchmark: its environment with the topics and the
// database that are its own.
type run struct {
	env    Env
	place  *place
	report func(Result) error
}

func newRun(ctx context.Context, env Env, keptTopics string, report func(Result) error) (run, error) {
	if err := checkLoopback(&env.Settings); err != nil {
		return run{}, err
	}
	if env.Measuring == nil {
		env.Measuring = func() func() { return func() {} }
	}
	if env.Progress == nil {
		env.Progress = io.Discard
	}
	place, err := newPlace(ctx, env.Settings, keptTopics, env.Progress, env.Log)
	return run{env: env, place: place, report: report}, err
}

// reportCPU reports what this process has used of the processors since before,
// for each of n: a figure that hardly changes when others use the machine too.
func (r *run) reportCPU(name string, before time.Duration, n int, what string) error {
	now, known := cpuTime()
	if !known {
		return nil
	}
	return r.report(Plain(name, float64(now-before)/float64(time.Microsecond)/float64(n), "us/"+what))
}

// watch waits for all and says how far things are. What does not move for a
// minute never will.
func (r *run) watch(ctx context.Context, handled *atomic.Int64, all <-chan struct{}) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	moved, before := time.Now(), int64(0)
	for {
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := handled.Load()
		if now > before {
			moved = time.Now()
		} else if time.Since(moved) > startLimit {
			return fmt.Errorf("stuck at %d records", now)
		}
		say(r.env.Progress, "handled %d, %d a second", now, (now-before)/5)
		before = now
	}
}
