package statestore

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

// RetentionConfig configures a [Retention]. Zero values mean the defaults.
type RetentionConfig struct {
	// Pool reaches PostgreSQL. Required. One connection of it is used at a time.
	Pool *pgxpool.Pool
	// Redis holds the hot copies. Required.
	Redis redis.UniversalClient
	// KeyPrefix stands before every Redis key. Default "millrace:".
	KeyPrefix string
	// TTL is how long the tombstone of an erased conversation stays in Redis: as long
	// as hot copies do. Default 24 h.
	TTL time.Duration
	// Completions is how long completions are kept. While there is one its task does not
	// run again, so they must outlive the records of tasks in Kafka. Those of tasks with
	// a dead letter, and of tasks that are held back, stay with them. Zero: for ever.
	Completions time.Duration
	// Conversations is how long a conversation that no turn changes keeps history and
	// state. What stays is what an erasure leaves. Zero: for ever.
	Conversations time.Duration
	// DeadLetters is how long a dead letter is kept, from when it came or was last
	// redriven. Zero: for ever.
	DeadLetters time.Duration
	// Steps is how long a step is kept whose task has not completed. Negative: for ever.
	// Default 7 days.
	Steps time.Duration
	// Lease is after what time another takes over from one that has stopped. Default
	// 15 s.
	Lease time.Duration
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
	// Metrics registers its metrics. Nil registers none.
	Metrics prometheus.Registerer
}

// Retention deletes what is no longer to be kept: the rows of conversations that
// have been erased, what is older than it may be, and steps that no turn will ask
// for. Any number may run at once; one of them works and the others
// wait.
//
// It works in batches that are transactions of their own, small enough to end
// within a tenth of a second as a rule, and rests between them: a transaction that
// lasts keeps vacuum from all tables.
type Retention struct {
	cfg     RetentionConfig
	id      uuid.UUID
	log     zerolog.Logger
	failing zerolog.Logger
	metrics *retentionMetrics
	eraser  *eraser
	walks   []*walk
}

// NewRetention returns a retention that does nothing until Run.
func NewRetention(cfg RetentionConfig) (*Retention, error) {
	var errs []error
	if cfg.Pool == nil {
		errs = append(errs, errors.New("no pool"))
	}
	if cfg.Redis == nil {
		errs = append(errs, errors.New("no redis client"))
	}
	if cfg.TTL < 0 || cfg.Lease < 0 {
		errs = append(errs, errors.New("TTL and Lease must not be negative"))
	}
	if cfg.Completions < 0 || cfg.Conversations < 0 || cfg.DeadLetters < 0 {
		errs = append(errs, errors.New("what is kept must not be kept for a negative time"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("retention config: %w", err)
	}
	cfg.KeyPrefix = cmp.Or(cfg.KeyPrefix, "millrace:")
	cfg.TTL = cmp.Or(cfg.TTL, 24*time.Hour)
	cfg.Lease = cmp.Or(cfg.Lease, 15*time.Second)
	cfg.Steps = cmp.Or(cfg.Steps, 7*24*time.Hour)
	r := &Retention{cfg: cfg, id: uuid.New(), log: zerolog.Nop(), metrics: newRetentionMetrics(cfg.Metrics)}
	if cfg.Logger != nil {
		r.log = cfg.Logger.With().Str("part", "retention").Logger()
	}
	r.failing = r.log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 30 * time.Second})
	r.eraser = &eraser{
		pool: cfg.Pool, log: r.log, rows: r.metrics.rows,
		hot: &hotCopies{redis: cfg.Redis, prefix: cfg.KeyPrefix, ttl: cfg.TTL},
	}
	r.walks = cfg.walks()
	return r, nil
}

// Run deletes until ctx ends, then leaves the lead to others and returns nil.
func (r *Retention) Run(ctx context.Context) error {
	ticker := time.NewTicker(r.cfg.Lease / 3)
	defer ticker.Stop()
	for {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.metrics.failures.Inc()
			r.failing.Warn().Err(err).Msg("cannot delete what is no longer to be kept, will try again")
		}
		select {
		case <-ctx.Done():
			r.leave(ctx)
			return nil
		case <-ticker.C:
		}
	}
}

//go:embed sql/retention_lead.sql
var retentionLeadSQL string

// step does what there is to do, for as long as the lease is safe.
func (r *Retention) step(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease/2)
	defer cancel()
	tag, err := r.cfg.Pool.Exec(ctx, retentionLeadSQL, r.id, r.cfg.Lease)
	if err != nil {
		return classify(fmt.Errorf("renew lease: %w", err))
	}
	if tag.RowsAffected() == 0 {
		r.metrics.behind.Reset() // the leader tells
		return nil
	}
	// Each gets its share of the time, so that a backlog of one holds up no other.
	budget := r.cfg.Lease / 2 / time.Duration(2+len(r.walks))
	errs := []error{r.erasuresFor(ctx, 2*budget)}
	for _, w := range r.walks {
		errs = append(errs, r.walkOld(ctx, w, budget))
	}
	for i, err := range errs {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
			errs[i] = nil // the rest comes with the next step
		}
	}
	return errors.Join(errs...)
}

func (r *Retention) erasuresFor(ctx context.Context, budget time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	err := r.finishErasures(limited)
	if limited.Err() != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

//go:embed sql/erase_waiting.sql
var eraseWaitingSQL string

// openErasures bounds how many erasures one look brings.
const openErasures = 1000

// finishErasures deletes what erasures have left. One that fails keeps no other
// from being finished.
func (r *Retention) finishErasures(ctx context.Context) error {
	rows, err := r.cfg.Pool.Query(ctx, eraseWaitingSQL, openErasures)
	if err != nil {
		return classify(fmt.Errorf("look for erasures: %w", err))
	}
	var (
		ids    []string
		id     string
		age    float64
		oldest float64
	)
	if _, err := pgx.ForEachRow(rows, []any{&id, &age}, func() error {
		ids, oldest = append(ids, id), max(oldest, age)
		return nil
	}); err != nil {
		return classify(fmt.Errorf("look for erasures: %w", err))
	}
	r.metrics.behind.WithLabelValues("erasures").Set(oldest)
	var errs []error
	for _, id := range ids {
		if _, err := r.eraser.finish(ctx, id); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// leave gives the lease back, so that others need not wait for its end.
func (r *Retention) leave(ctx context.Context) {
	r.metrics.behind.Reset()
	// The caller's context has ended; giving the lease back must not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Lease/2)
	defer cancel()
	if _, err := r.cfg.Pool.Exec(ctx, `UPDATE millrace.retention_leader SET owner = NULL WHERE owner = $1`, r.id); err != nil {
		r.log.Warn().Err(err).Msg("cannot give the lead of the retention back; it moves when its lease runs out")
	}
}
