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
	"github.com/rs/zerolog"

	"millrace/outbox"
)

// ReleaserConfig configures a [Releaser]. Zero values mean the defaults.
type ReleaserConfig struct {
	// Pool reaches PostgreSQL. Required.
	Pool *pgxpool.Pool
	// PollInterval is how often it is asked for tasks that are due, at least: a task
	// that comes with less time than that ahead of it waits so much longer. Default
	// 1 s.
	PollInterval time.Duration
	// Lease is after what time another releaser takes over from one that has
	// stopped renewing. Default 4 s.
	Lease time.Duration
	// BatchSize bounds the tasks that are released in one transaction. Default 500.
	BatchSize int
	// Published is told the outbox shards that tasks were released to. It must not
	// block. Nil tells nobody.
	Published func(shards ...int)
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
	// Metrics registers the releaser's metrics. Nil registers none.
	Metrics prometheus.Registerer
}

// Releaser releases tasks whose time has come: it moves them into the outbox, in
// the order of their times and, where these are equal, in the order in which they
// were sent. Of any number of releasers one leads and the others wait.
//
// A move is one transaction, so a task is in the outbox once, whatever becomes of
// the releaser; the relay publishes it from there. A transaction begins with a
// lock on the leader's row and a look that it still is the leader's: one that
// has slept through its lease moves nothing, and one that is in the middle of a
// move holds its successor up until it has ended.
type Releaser struct {
	cfg     ReleaserConfig
	id      uuid.UUID
	log     zerolog.Logger
	failing zerolog.Logger
	metrics *releaseMetrics

	// What follows is Run's own.
	floor     floor
	blocked   []string // conversations whose key somebody else held of late
	forgotten cursor
	counted   time.Time
}

const (
	releaseTimeout = 10 * time.Second
	releaseBytes   = 8 << 20
	countInterval  = 10 * time.Second
)

// NewReleaser returns a releaser.
func NewReleaser(cfg ReleaserConfig) (*Releaser, error) {
	var errs []error
	if cfg.Pool == nil {
		errs = append(errs, errors.New("no pool"))
	}
	if cfg.PollInterval < 0 || cfg.Lease < 0 || cfg.BatchSize < 0 {
		errs = append(errs, errors.New("PollInterval, Lease and BatchSize must not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("releaser config: %w", err)
	}
	cfg.PollInterval = cmp.Or(cfg.PollInterval, time.Second)
	cfg.Lease = cmp.Or(cfg.Lease, 4*time.Second)
	cfg.BatchSize = cmp.Or(cfg.BatchSize, 500)
	if cfg.Published == nil {
		cfg.Published = func(...int) {}
	}
	r := &Releaser{cfg: cfg, id: uuid.New(), log: zerolog.Nop(), metrics: newReleaseMetrics(cfg.Metrics)}
	if cfg.Logger != nil {
		r.log = cfg.Logger.With().Str("part", "releaser").Logger()
	}
	r.failing = r.log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 5 * time.Second})
	return r, nil
}

// Run releases until ctx ends, then leaves the lead to others and returns nil.
func (r *Releaser) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.leave(ctx)
			return nil
		case <-timer.C:
		}
		rest, err := r.step(ctx)
		if err != nil && ctx.Err() == nil {
			r.metrics.failures.Inc()
			r.failing.Warn().Err(err).Msg("cannot release tasks, will try again")
			rest = r.cfg.PollInterval
		}
		timer.Reset(rest)
	}
}

//go:embed sql/release_look.sql
var releaseLookSQL string

// step looks for tasks that are due and releases a batch of them. It returns after
// what time to look again.
func (r *Releaser) step(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	var (
		leads bool
		now   time.Time
		next  *float64
	)
	err := r.cfg.Pool.QueryRow(ctx, releaseLookSQL, r.id, r.cfg.Lease, r.floor.from()).Scan(&leads, &now, &next)
	if err != nil {
		return 0, fmt.Errorf("look for due tasks: %w", err)
	}
	if !leads {
		r.follow()
		return r.cfg.PollInterval, nil
	}
	r.metrics.lead(next)
	if next != nil && *next <= 0 {
		return r.release(ctx, now)
	}
	if next == nil {
		r.floor.passed(now)
	}
	more, err := r.forget(ctx)
	if err != nil {
		return 0, err
	}
	if time.Since(r.counted) >= countInterval {
		if err := r.count(ctx); err != nil {
			return 0, err
		}
	}
	rest := r.cfg.PollInterval
	if more {
		rest = min(rest, forgetRest)
	}
	if next != nil {
		rest = min(rest, time.Duration(*next*float64(time.Second))+time.Millisecond)
	}
	return rest, nil
}

// follow forgets what only the leader knows.
func (r *Releaser) follow() {
	r.floor, r.blocked, r.forgotten, r.counted = floor{}, nil, cursor{}, time.Time{}
	r.metrics.follow()
}

// release moves what was due at a time, or a first batch of it, and returns after
// what time to look again.
func (r *Releaser) release(ctx context.Context, now time.Time) (time.Duration, error) {
	taken, more, err := r.move(ctx)
	switch {
	case errors.Is(err, errDeposed):
		r.follow()
		return r.cfg.PollInterval, nil
	case err != nil:
		return 0, err
	case more:
		return 0, nil
	case len(r.blocked) > 0 || taken == 0: // somebody is about to delete the row
		r.blocked = nil
		return min(blockedRest, r.cfg.PollInterval), nil
	}
	r.floor.passed(now)
	return 0, nil // and see when the next one is due
}

// blockedRest is how soon tasks are looked at again that somebody kept from being
// released.
const blockedRest = 200 * time.Millisecond

// errDeposed: the lease ran out between the look and the release.
var errDeposed = errors.New("another releaser leads")

var (
	//go:embed sql/release_begin.sql
	releaseBeginSQL string
	//go:embed sql/release_take.sql
	releaseTakeSQL string
	//go:embed sql/release_mark.sql
	releaseMarkSQL string
)

// dueTask is a row that is due.
type dueTask struct {
	message outbox.Message
	late    float64
	ended   bool
}

// move moves a batch into the outbox, and returns how many tasks were due. More
// says that there may be further ones.
func (r *Releaser) move(ctx context.Context) (taken int, more bool, err error) {
	tx, err := r.cfg.Pool.Begin(ctx)
	if err != nil {
		return 0, false, fmt.Errorf("begin release: %w", err)
	}
	defer func() {
		ctx, cancel := outlive(ctx)
		defer cancel()
		_ = tx.Rollback(ctx) // nothing, once it has committed
	}()
	due, more, err := r.take(ctx, tx)
	if err != nil || len(due) == 0 {
		return 0, false, err
	}
	taken = len(due)
	if due, err = r.unblocked(ctx, tx, due); err != nil {
		return 0, false, err
	}
	var (
		messages        []outbox.Message
		released, ended []string
		shards          []int
	)
	for i := range due {
		m := &due[i].message
		if due[i].ended {
			ended = append(ended, m.ID)
			continue
		}
		released = append(released, m.ID)
		messages = append(messages, *m)
		shards = addShard(shards, cmp.Or(m.Key, m.ID))
	}
	if len(messages) > 0 {
		if err := outbox.Append(ctx, tx, messages...); err != nil {
			return 0, false, err
		}
	}
	batch := &pgx.Batch{}
	batch.Queue(releaseMarkSQL, released)
	batch.Queue(`DELETE FROM millrace.scheduled WHERE task_id = ANY ($1)`, ended)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return 0, false, fmt.Errorf("mark released tasks: %w", err)
	}
	// When its answer is lost, the next look finds what has become of it.
	if err := tx.Commit(ctx); err != nil {
		return 0, false, fmt.Errorf("commit release: %w", err)
	}
	r.cfg.Published(shards...)
	r.metrics.discarded.Add(float64(len(ended)))
	for i := range due {
		if !due[i].ended {
			r.metrics.released.Inc()
			r.metrics.delay.Observe(due[i].late)
		}
	}
	return taken, more, nil
}

// take returns the tasks that are due.
func (r *Releaser) take(ctx context.Context, tx pgx.Tx) (due []dueTask, more bool, err error) {
	var (
		leads bool
		bytes int
		batch pgx.Batch
	)
	batch.Queue(releaseBeginSQL, r.id).Query(func(rows pgx.Rows) error {
		leads = rows.Next()
		rows.Close()
		return rows.Err()
	})
	blocked := r.blocked
	if blocked == nil {
		blocked = []string{} // NULL would leave every conversation out
	}
	batch.Queue(releaseTakeSQL, r.floor.at, r.cfg.BatchSize, releaseBytes, blocked, r.id).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				d                 dueTask
				priority, headers string
			)
			m := &d.message
			if err := rows.Scan(&m.ID, &m.Key, &m.Type, &priority, &m.ContentType, &headers, &m.Data, &m.At, &d.late, &d.ended); err != nil {
				return err
			}
			if m.Headers, err = decodeHeaders(headers); err != nil {
				return fmt.Errorf("task %q: %w", m.ID, err)
			}
			m.Topic = "tasks." + priority
			bytes += len(m.Data)
			due = append(due, d)
		}
		return rows.Err()
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, false, fmt.Errorf("take due tasks: %w", err)
	}
	if !leads {
		return nil, false, errDeposed
	}
	return due, len(due) == r.cfg.BatchSize || bytes >= releaseBytes, nil
}

// unblocked takes the locks that [outbox.Append] wants, and leaves out the tasks of
// conversations whose lock somebody else has: all others need not wait for him.
func (r *Releaser) unblocked(ctx context.Context, tx pgx.Tx, due []dueTask) ([]dueTask, error) {
	var keys []string
	seen := make(map[string]bool)
	for i := range due {
		if key := due[i].message.Key; key != "" && !seen[key] {
			seen[key] = true
			keys = append(keys, key)
		}
	}
	held, err := outbox.TryKeyLocks(ctx, tx, keys)
	if err != nil {
		return nil, err
	}
	if len(held) == 0 {
		return due, nil
	}
	r.blocked = append(r.blocked, held...)
	for _, key := range held {
		seen[key] = false
	}
	free := due[:0]
	for _, d := range due {
		if key := d.message.Key; key == "" || seen[key] {
			free = append(free, d)
		}
	}
	return free, nil
}

// leave lets the next releaser begin at once.
func (r *Releaser) leave(ctx context.Context) {
	r.follow()
	// The caller's context has ended; giving the lease back must not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Lease/2)
	defer cancel()
	if _, err := r.cfg.Pool.Exec(ctx, `UPDATE millrace.release_leader SET owner = NULL WHERE owner = $1`, r.id); err != nil {
		r.log.Warn().Err(err).Msg("cannot give the lead back; it moves when its lease runs out")
	}
}

// floor spares the looks the index entries of what was released: they stay for as
// long as somebody pins the oldest snapshot. Before the floor nothing waits,
// except for what has turned up too late: every sweepInterval all is looked at.
type floor struct {
	at    time.Time
	swept time.Time
}

const (
	sweepInterval = 30 * time.Second
	// floorMargin is more than it takes ingest to store a task, and clocks differ.
	floorMargin = time.Minute
)

// from returns where a look begins.
func (f *floor) from() time.Time {
	if time.Since(f.swept) >= sweepInterval {
		f.at = time.Time{}
	}
	return f.at
}

// passed notes that nothing was due from the floor on, at a time of the database's
// clock.
func (f *floor) passed(now time.Time) {
	if f.at.IsZero() {
		f.swept = time.Now()
	}
	f.at = now.Add(-floorMargin)
}

// cursor is how far released tasks have been looked at.
type cursor struct {
	at    time.Time
	id    string
	since time.Time // when it began anew
}

const (
	forgetBatch    = 1000
	forgetInterval = 10 * time.Second
	forgetRest     = 100 * time.Millisecond
)

//go:embed sql/release_forget.sql
var releaseForgetSQL string

// forget drops what is known of released tasks and is no longer needed, a batch at
// a time; more says that there are further ones to look at.
func (r *Releaser) forget(ctx context.Context) (more bool, err error) {
	c := &r.forgotten
	if c.id == "" {
		if time.Since(c.since) < forgetInterval {
			return false, nil
		}
		c.since = time.Now()
	}
	var n int
	err = r.cfg.Pool.QueryRow(ctx, releaseForgetSQL, c.at, c.id, forgetBatch).Scan(&c.at, &c.id, &n)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, fmt.Errorf("forget released tasks: %w", err)
	}
	if n < forgetBatch {
		c.at, c.id = time.Time{}, ""
		return false, nil
	}
	return true, nil
}

//go:embed sql/release_waiting.sql
var releaseWaitingSQL string

func (r *Releaser) count(ctx context.Context) error {
	var n int64
	if err := r.cfg.Pool.QueryRow(ctx, releaseWaitingSQL).Scan(&n); err != nil {
		return fmt.Errorf("count scheduled tasks: %w", err)
	}
	r.counted = time.Now()
	r.metrics.waits(n)
	return nil
}
