package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/kafka"
	"millrace/internal/settings"
	"millrace/outbox"
)

// What others do with the same rows on a 2-core machine.
const recordedForwarderRate = 1220 // Watermill's SQL forwarder, batches of 100

// OutboxConfig configures the benchmarks of the outbox. Zero values mean the
// defaults.
type OutboxConfig struct {
	Env
	// Only names the benchmarks to run, of [OutboxNames]. Default: all, in order; pin
	// only when PinXmin says how long.
	Only []string
	// Records is how many events wait in the outbox before rate begins. Default
	// 400,000.
	Records int
	// Window is how long latency is measured. Default 20 s.
	Window time.Duration
	// PinXmin is how long pin runs behind transactions that keep deleted rows from
	// being removed. Default: not at all.
	PinXmin time.Duration
	// PeerRate is the rate of Watermill's forwarder in the same run. Default 1,220
	// events a second, as recorded.
	PeerRate float64
}

var outboxBenchmarks = suite[*outboxRun]{
	{"rate", (*outboxRun).rate},
	{"latency", (*outboxRun).latency},
	{"pin", (*outboxRun).pin},
}

// OutboxNames returns the benchmarks of the outbox in the order they run.
func OutboxNames() []string { return outboxBenchmarks.names() }

// Validate reports all that is wrong with the configuration.
func (c *OutboxConfig) Validate() error {
	errs := outboxBenchmarks.check(c.Only)
	if c.Records < 0 || c.Window < 0 || c.PinXmin < 0 || c.PeerRate < 0 {
		errs = append(errs, errors.New("records, window, time to pin and peer rate must not be negative"))
	}
	if c.PinXmin == 0 && slices.Contains(c.Only, "pin") {
		errs = append(errs, errors.New("pin needs a time to pin"))
	}
	return errors.Join(errs...)
}

type outboxRun struct {
	OutboxConfig
	run
}

// Outbox runs the benchmarks of the outbox and reports each figure as it comes.
func Outbox(ctx context.Context, cfg OutboxConfig, report func(Result) error) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Records == 0 {
		cfg.Records = 400_000
	}
	if cfg.Window == 0 {
		cfg.Window = 20 * time.Second
	}
	if cfg.PeerRate == 0 {
		cfg.PeerRate = recordedForwarderRate
	}
	r := &outboxRun{OutboxConfig: cfg}
	if r.run, err = newRun(ctx, cfg.Env, "", report); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.place.remove(ctx)) }()
	return outboxBenchmarks.run(ctx, r, "outbox", cfg.Only)
}

// withPool gives measure topics and connections of its own.
func (r *outboxRun) withPool(ctx context.Context, name string, measure func(settings.Settings, *pgxpool.Pool) error) error {
	s, err := r.place.topics(ctx, name)
	if err != nil {
		return err
	}
	postgres, err := s.PostgresConfig()
	if err != nil {
		return fmt.Errorf("MILLRACE_POSTGRES_URL: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, postgres)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer pool.Close()
	return measure(s, pool)
}

// withRelay runs a relay as a worker does while measure runs. It has given its
// shards back when withRelay returns.
func (r *outboxRun) withRelay(ctx context.Context, s *settings.Settings, pool *pgxpool.Pool, atLeastOnce bool,
	measure func(ctx context.Context, relay *outbox.Relay) error,
) error {
	opts, err := kafka.Options(s, "relay", r.env.Log)
	if err != nil {
		return err
	}
	relay, err := outbox.NewRelay(outbox.RelayConfig{
		Pool: pool, Kafka: opts, TopicPrefix: s.TopicPrefix, AtLeastOnce: atLeastOnce, Logger: &r.env.Log,
	})
	if err != nil {
		return err
	}
	relayCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	stopProfile := r.env.Measuring()
	go func() { ended <- relay.Run(relayCtx) }()
	err = measure(ctx, relay)
	stopProfile()
	stop()
	return errors.Join(err, <-ended)
}

// eventReader reads the events of a run as a read_committed reader sees them.
func (r *outboxRun) eventReader(s *settings.Settings) (*kgo.Client, error) {
	opts, err := kafka.Options(s, "bench", r.env.Log)
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(opts,
		kgo.ConsumeTopics(s.TopicPrefix+outbox.ResultsTopic), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return nil, fmt.Errorf("open consumer: %w", err)
	}
	return client, nil
}

// ledger judges events by their number: each once, and within a key in order.
type ledger struct {
	seen []bool
	last []int // by key: the number before
	n    int
}

func newLedger(events, keys int) *ledger {
	return &ledger{seen: make([]bool, events), last: slices.Repeat([]int{-1}, keys)}
}

func (l *ledger) add(event, key int) error {
	switch {
	case event >= len(l.seen):
		return fmt.Errorf("event %d was never written", event)
	case l.seen[event]:
		return fmt.Errorf("event %d was published twice", event)
	case event < l.last[key]:
		return fmt.Errorf("event %d of key %d was published after event %d", event, key, l.last[key])
	}
	l.seen[event], l.last[key] = true, event
	l.n++
	return nil
}

func (l *ledger) complete() bool { return l.n == len(l.seen) }
