package bench

import (
	"context"
	"errors"
	"time"
)

// What others do with the same records on a 2-core machine, for when they are
// not measured in the same run.
const recordedPeerRate = 75_200 // Confluent Parallel Consumer 0.5.3.3, 1,000 slots

// EngineConfig configures the benchmarks of the engine. Zero values mean the
// defaults.
type EngineConfig struct {
	Env
	// Only names the benchmarks to run, of [EngineNames]. Default: all, in order.
	Only []string
	// Records is how many records noop and poll read; half of them are the backlog
	// of overtake. Default 2,000,000.
	Records int
	// Slots is how many turns noop, work100ms and hot run at once. Default 1,000.
	Slots int
	// Window is how long a steady state is measured. Default 10 s.
	Window time.Duration
	// TopicPrefix keeps the records of noop, poll and work100ms under this prefix,
	// and uses those that an earlier run left there. Empty: made anew, and deleted
	// at the end.
	TopicPrefix string
	// PeerRate is the Parallel Consumer's rate in the same run. Default 75,200
	// records a second, as recorded.
	PeerRate float64
}

// EngineNames returns the benchmarks of the engine in the order they run.
func EngineNames() []string { return engineBenchmarks.names() }

var engineBenchmarks = suite[*engineRun]{
	{"poll", (*engineRun).poll},
	{"noop", (*engineRun).noop},
	{"work100ms", (*engineRun).work},
	{"hot", (*engineRun).hot},
	{"latency", (*engineRun).latency},
	{"overtake", (*engineRun).overtake},
	{"memory", (*engineRun).memory},
}

// engineRun is one call of [Engine].
type engineRun struct {
	EngineConfig
	run
}

// Validate reports all that is wrong with the configuration.
func (c *EngineConfig) Validate() error {
	errs := engineBenchmarks.check(c.Only)
	if c.Records < 0 || c.Slots < 0 || c.Window < 0 || c.PeerRate < 0 {
		errs = append(errs, errors.New("records, slots, window and peer rate must not be negative"))
	}
	return errors.Join(errs...)
}

// Engine runs the benchmarks of the engine and reports each figure as it comes.
func Engine(ctx context.Context, cfg EngineConfig, report func(Result) error) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Records == 0 {
		cfg.Records = 2_000_000
	}
	if cfg.Slots == 0 {
		cfg.Slots = 1000
	}
	if cfg.Window == 0 {
		cfg.Window = 10 * time.Second
	}
	if cfg.PeerRate == 0 {
		cfg.PeerRate = recordedPeerRate
	}
	r := &engineRun{EngineConfig: cfg}
	if r.run, err = newRun(ctx, cfg.Env, cfg.TopicPrefix, report); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.place.remove(ctx)) }()
	return engineBenchmarks.run(ctx, r, "engine", cfg.Only)
}
