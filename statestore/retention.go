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
	// Lease is after what time another takes over from one that has stopped. Default
	// 15 s.
	Lease time.Duration
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
	// Metrics registers its metrics. Nil registers none.
	Metrics prometheus.Registerer
}

// Retention deletes what is no longer to be kept: the rows of conversations that
// have been erased. Any number may run at once; one of them works and the others
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
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("retention config: %w", err)
	}
	cfg.KeyPrefix = cmp.Or(cfg.KeyPrefix, "millrace:")
	cfg.TTL = cmp.Or(cfg.TTL, 24*time.Hour)
	cfg.Lease = cmp.Or(cfg.Lease, 15*time.Second)
	r := &Retention{cfg: cfg, id: uuid.New(), log: zerolog.Nop(), metrics: newRetentionMetrics(cfg.Metrics)}
	if cfg.Logger != nil {
		r.log = cfg.Logger.With().Str("part", "retention").Logger()
	}
	r.failing = r.log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 30 * time.Second})
	r.eraser = &eraser{
		pool: cfg.Pool, log: r.log, rows: r.metrics.rows,
		hot: &hotCopies{redis: cfg.Redis, prefix: cfg.KeyPrefix, ttl: cfg.TTL},
	}
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
	err = r.finishErasures(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // the rest comes with the next step
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
