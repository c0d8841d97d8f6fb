package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"

	"millrace/internal/app"
	"millrace/internal/bench"
	"millrace/internal/settings"
)

// benchEnv reads settings and flags. The returned function writes what is left
// to write.
func (c *cli) benchEnv(ctx context.Context, f *benchFlags) (bench.Env, func() error, error) {
	// Whoever sets a level gets that one; the lines of a healthy worker are no
	// part of a measurement.
	environ := slices.Concat([]string{"MILLRACE_LOG_LEVEL=error"}, c.environ)
	if len(f.brokers) > 0 {
		environ = append(environ, "MILLRACE_KAFKA_BROKERS="+strings.Join(f.brokers, ","))
	}
	var (
		env bench.Env
		err error
	)
	if env.Settings, err = settings.Load(environ, settings.RoleWorker); err != nil {
		return env, nil, err
	}
	log, flush, err := c.logger(&env.Settings, nil)
	if err != nil {
		return env, nil, err
	}
	env.Log, env.Progress = log, c.err
	app.TuneMemory(log)
	stopTracing, err := app.StartTracing(ctx, "millrace-bench", log)
	if err != nil {
		flush()
		return env, nil, err
	}
	profile := &cpuProfile{path: f.cpuProfile}
	env.Measuring = profile.start
	return env, func() error {
		stopTracing()
		flush()
		return errors.Join(profile.err, writeAllocations(f.memProfile))
	}, nil
}

// cpuProfile writes the profile of what was measured last.
type cpuProfile struct {
	path string
	err  error
}

func (p *cpuProfile) start() (stop func()) {
	if p.path == "" || p.err != nil {
		return func() {}
	}
	file, err := os.Create(p.path)
	if err == nil {
		err = pprof.StartCPUProfile(file)
	}
	if err != nil {
		p.err = fmt.Errorf("profile: %w", err)
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		if err := file.Close(); err != nil {
			p.err = fmt.Errorf("profile: %w", err)
		}
	}
}

func writeAllocations(path string) error {
	if path == "" {
		return nil
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	runtime.GC() // what is live is known as of the last collection
	if err := errors.Join(pprof.Lookup("allocs").WriteTo(file, 0), file.Close()); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	return nil
}
