package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"millrace"
	"millrace/consumer"
	"millrace/outbox"
	"millrace/statestore"
)

// Worker runs turns: an engine with its store, its relay and the way to LLMs.
type Worker struct {
	pool  *pgxpool.Pool
	redis redis.UniversalClient
	store *statestore.Store
	relay *outbox.Relay
	// retention is where the relay is: what nobody waits for.
	retention *statestore.Retention
	releaser  *statestore.Releaser
	engine    *consumer.Engine
	llm       *llmStack
}

// NewWorker connects to the services and returns a worker that runs handler, or
// the handler that the settings name when it is nil. Close releases what Run
// does not.
func NewWorker(ctx context.Context, p *Process, handler millrace.Handler) (*Worker, error) {
	w := &Worker{}
	if err := w.open(ctx, p, handler); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Worker) open(ctx context.Context, p *Process, handler millrace.Handler) error {
	s := &p.Settings
	kafkaOpts, err := p.kafkaOptions("worker")
	if err != nil {
		return err
	}
	if w.pool, err = openPostgres(ctx, s); err != nil {
		return err
	}
	p.Metrics.MustRegister(poolMetrics{w.pool})
	if w.redis, err = openRedis(s); err != nil {
		return err
	}
	if err := awaitSchema(ctx, w.pool, p.Log); err != nil {
		return err
	}
	if err := awaitTopics(ctx, s, kafkaOpts, p.Log); err != nil {
		return err
	}
	published := func(...int) {}
	if s.Relay {
		if w.relay, w.releaser, err = newRelay(p, w.pool); err != nil {
			return err
		}
		published = w.relay.Notify
		p.Health.Ready("relay", w.relay.Check)
		if w.retention, err = newRetention(p, w.pool, w.redis); err != nil {
			return err
		}
	}
	w.store, err = statestore.New(statestore.Config{
		Pool: w.pool, Redis: w.redis, KeyPrefix: s.RedisPrefix(), TTL: s.RedisTTL,
		RunDegraded: s.RedisDegraded == "run", DropResults: !bool(s.Results),
		Published: published, Logger: &p.Log, Metrics: p.Metrics,
	})
	if err != nil {
		return err
	}
	if w.llm, err = newLLMStack(ctx, p, w.redis); err != nil {
		return err
	}
	if handler == nil {
		if handler, err = w.llm.builtin(s); err != nil {
			return err
		}
	}
	split, err := otherPools(ctx, s, kafkaOpts, p.Log)
	if err != nil {
		return err
	}
	w.engine, err = consumer.New(consumer.Config{
		Kafka: kafkaOpts, TopicPrefix: s.TopicPrefix, Pool: s.Pool, Priorities: s.Priorities, Split: split,
		Host: p.Host, Addr: p.Addr, Redis: w.redis, KeyPrefix: s.RedisPrefix(), Handler: traced(w.llm.inContext(handler)), Store: w.store, History: w.store, Journal: w.store, Cancels: w.store, Fences: w.store, Transactions: w.store, Erasures: w.store,
		Slots: s.Slots, Reserved: s.Reserved, MaxAttempts: s.MaxAttempts,
		RetryMin: s.RetryMin, RetryMax: s.RetryMax, TurnTimeout: s.HandlerTimeout, TypeTimeouts: s.TypeTimeouts,
		StuckAfter: s.StuckAfter, StuckLimit: s.StuckLimit, DrainTimeout: s.DrainTimeout,
		CacheBytes: cmp.Or(int64(s.CacheBytes), -1), // 0 is the engine's default
		Dependencies: []consumer.Dependency{
			{Name: millrace.Postgres, Check: w.store.Check},
			{Name: millrace.Redis, Check: w.store.CheckRedis, Optional: s.RedisDegraded == "run"},
		},
		InstanceID: s.WorkerName, Logger: &p.Log, Metrics: p.Metrics,
	})
	if err != nil {
		return err
	}
	p.Health.Live("engine", w.engine.Live)
	p.Health.Ready("engine", w.engine.Check)
	return nil
}

// Run runs turns until ctx ends: then the engine drains, and only when no turn
// is left do the store and the relay stop.
func (w *Worker) Run(ctx context.Context) error {
	var parts []part
	if w.relay != nil {
		parts = append(parts, part{"relay", w.relay.Run}, part{"releaser", w.releaser.Run}, part{"retention", w.retention.Run})
	}
	parts = append(parts, part{"state store", w.store.Run})
	if w.llm.proxy != nil {
		parts = append(parts, part{"llm proxy", w.llm.proxy.run})
	}
	parts = append(parts, part{"consumer", w.engine.Run})
	return runParts(ctx, parts...)
}

// Close releases the connections. Run must have returned.
func (w *Worker) Close() {
	if w.pool != nil {
		w.pool.Close()
	}
	if w.redis != nil {
		_ = w.redis.Close()
	}
	if w.llm != nil {
		w.llm.close()
	}
}

// newRelay returns a relay on a pool, and what releases scheduled tasks to it.
func newRelay(p *Process, pool *pgxpool.Pool) (*outbox.Relay, *statestore.Releaser, error) {
	opts, err := p.kafkaOptions("relay")
	if err != nil {
		return nil, nil, err
	}
	relay, err := outbox.NewRelay(outbox.RelayConfig{
		Pool: pool, Kafka: opts, TopicPrefix: p.Settings.TopicPrefix,
		AtLeastOnce: p.Settings.RelayDelivery == "at-least-once", Logger: &p.Log, Metrics: p.Metrics,
	})
	if err != nil {
		return nil, nil, err
	}
	releaser, err := statestore.NewReleaser(statestore.ReleaserConfig{
		Pool: pool, Published: relay.Notify, Logger: &p.Log, Metrics: p.Metrics,
	})
	return relay, releaser, err
}

// RunWorker runs a worker process with its health and metrics address.
func RunWorker(ctx context.Context, p *Process, handler millrace.Handler) error {
	front, err := listen(ctx, p, "worker")
	if err != nil {
		return err
	}
	return front.whileStarting(ctx, func(ctx context.Context) (part, func(), error) {
		w, err := NewWorker(ctx, p, handler)
		if err != nil {
			return part{}, nil, err
		}
		front.mux.Handle(explainRoute, explain(w.engine))
		return part{"worker", w.Run}, w.Close, nil
	})
}

// RunRelay runs a relay process.
func RunRelay(ctx context.Context, p *Process) error {
	front, err := listen(ctx, p, "relay")
	if err != nil {
		return err
	}
	return front.whileStarting(ctx, func(ctx context.Context) (part, func(), error) {
		r := &relayProcess{}
		if err := r.open(ctx, p); err != nil {
			r.close()
			return part{}, nil, err
		}
		p.Metrics.MustRegister(poolMetrics{r.pool})
		return part{"relay", r.run}, r.close, nil
	})
}

// relayProcess is a relay with the retention beside it.
type relayProcess struct {
	pool      *pgxpool.Pool
	redis     redis.UniversalClient
	relay     *outbox.Relay
	releaser  *statestore.Releaser
	retention *statestore.Retention
}

func (r *relayProcess) open(ctx context.Context, p *Process) error {
	opts, err := p.kafkaOptions("relay")
	if err != nil {
		return err
	}
	if r.pool, err = openPostgres(ctx, &p.Settings); err != nil {
		return err
	}
	if r.redis, err = openRedis(&p.Settings); err != nil {
		return err
	}
	if err := errors.Join(awaitSchema(ctx, r.pool, p.Log), awaitTopics(ctx, &p.Settings, opts, p.Log)); err != nil {
		return err
	}
	if r.relay, r.releaser, err = newRelay(p, r.pool); err != nil {
		return fmt.Errorf("open relay: %w", err)
	}
	// Redis is for hot copies of erased conversations alone: a relay is ready without.
	if r.retention, err = newRetention(p, r.pool, r.redis); err != nil {
		return err
	}
	p.Health.Ready("relay", r.relay.Check)
	return nil
}

func (r *relayProcess) run(ctx context.Context) error {
	return runParts(ctx, part{"relay", r.relay.Run}, part{"releaser", r.releaser.Run}, part{"retention", r.retention.Run})
}

func (r *relayProcess) close() {
	if r.pool != nil {
		r.pool.Close()
	}
	if r.redis != nil {
		_ = r.redis.Close()
	}
}
