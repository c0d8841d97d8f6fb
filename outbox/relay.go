package outbox

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
)

// RelayConfig configures a [Relay]. Zero values mean the defaults.
type RelayConfig struct {
	// Pool reads the outbox. Required. A relay uses at most two connections for each
	// shard that it owns and one more at once, and gets along with fewer.
	Pool *pgxpool.Pool
	// Kafka holds what is needed to reach the brokers: seeds, TLS, SASL, client
	// id. Required, unless there is a Sink.
	Kafka []kgo.Opt
	// AtLeastOnce publishes to Kafka without transactions: sooner, but a relay that
	// takes a shard over publishes again what its predecessor was about to delete,
	// and one that only slept may do so at the same time.
	AtLeastOnce bool
	// Sink is where events go. Default: Kafka, as the fields above say.
	Sink Sink
	// TopicPrefix stands before every topic. Default "millrace.".
	TopicPrefix string
	// BatchSize bounds the rows of one Kafka transaction. Default 500.
	BatchSize int
	// PollInterval is how long a shard rests after it was found empty, unless
	// [Relay.Notify] wakes it. Default 100 ms.
	PollInterval time.Duration
	// Lease is how long a shard stays with a relay that stopped renewing: a dead
	// relay's shards move after this time. Default 4 s.
	Lease time.Duration
	// TransactionTimeout is how long a dead relay's open transaction can hold
	// read_committed readers back. Default 5 s.
	TransactionTimeout time.Duration
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
	// Metrics registers the relay's metrics. Nil registers none.
	Metrics prometheus.Registerer
}

// Relay publishes the outbox. Any number may run at once: they share the shards
// among them.
type Relay struct {
	cfg     RelayConfig
	id      uuid.UUID
	log     zerolog.Logger
	metrics *relayMetrics
	wake    [Shards]chan struct{}
	stopped chan struct{} // a publisher has ended: its shard can be given back
	lastOK  atomic.Int64  // unix nanoseconds of the last renewal that succeeded
}

// NewRelay returns a relay that does nothing until Run.
func NewRelay(cfg RelayConfig) (*Relay, error) {
	var errs []error
	if cfg.Pool == nil {
		errs = append(errs, errors.New("no pool"))
	}
	if len(cfg.Kafka) == 0 && cfg.Sink == nil {
		errs = append(errs, errors.New("no kafka options and no sink"))
	}
	if cfg.BatchSize < 0 || cfg.BatchSize > 10_000 {
		errs = append(errs, fmt.Errorf("BatchSize %d: want 1 to 10000", cfg.BatchSize))
	}
	if cfg.PollInterval < 0 || cfg.Lease < 0 || cfg.TransactionTimeout < 0 {
		errs = append(errs, errors.New("PollInterval, Lease and TransactionTimeout must not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("relay config: %w", err)
	}
	if cfg.TopicPrefix == "" {
		cfg.TopicPrefix = "millrace."
	}
	cfg.BatchSize = cmp.Or(cfg.BatchSize, 500)
	cfg.PollInterval = cmp.Or(cfg.PollInterval, 100*time.Millisecond)
	cfg.Lease = cmp.Or(cfg.Lease, 4*time.Second)
	cfg.TransactionTimeout = cmp.Or(cfg.TransactionTimeout, 5*time.Second)
	if cfg.Sink == nil {
		cfg.Sink = &kafkaSink{opts: cfg.Kafka, prefix: cfg.TopicPrefix, timeout: cfg.TransactionTimeout, atLeastOnce: cfg.AtLeastOnce}
	}
	r := &Relay{cfg: cfg, id: uuid.New(), log: zerolog.Nop(), metrics: newRelayMetrics(cfg.Metrics)}
	if cfg.Logger != nil {
		r.log = cfg.Logger.With().Str("part", "relay").Logger()
	}
	r.stopped = make(chan struct{}, 1)
	for i := range r.wake {
		r.wake[i] = make(chan struct{}, 1)
	}
	return r, nil
}

// Notify wakes the given shards if this relay owns them: rows have been
// committed there. It never blocks.
func (r *Relay) Notify(shards ...int) {
	for _, s := range shards {
		select {
		case r.wake[s] <- struct{}{}:
		default:
		}
	}
}

// Check reports whether the relay can reach PostgreSQL and renew its leases.
func (r *Relay) Check(context.Context) error {
	last := r.lastOK.Load()
	if last == 0 {
		return errors.New("relay has not claimed its shards yet")
	}
	if age := time.Since(time.Unix(0, last)); age > r.cfg.Lease {
		return fmt.Errorf("relay has not renewed its shard leases for %s", age.Round(time.Second))
	}
	return nil
}

// Run publishes until ctx ends, then finishes the transactions under way, gives
// its shards back and returns nil.
func (r *Relay) Run(ctx context.Context) error {
	owned := make(map[int]*ownedShard)
	ticker := time.NewTicker(r.cfg.Lease / 4)
	defer ticker.Stop()
	for {
		if err := r.balance(ctx, owned); err != nil && ctx.Err() == nil {
			r.log.Warn().Err(err).Msg("cannot renew shard leases or measure their lag; will try again")
			r.dropExpired(owned)
		}
		select {
		case <-ctx.Done():
			r.leave(ctx, owned)
			return nil
		case <-ticker.C:
		case <-r.stopped:
		}
	}
}

// ownedShard is a shard whose publisher runs, or has been told to stop and is
// finishing its transaction. Nothing waits for that: the other leases have to be
// renewed in the meantime.
type ownedShard struct {
	publisher *publisher
	cancel    context.CancelFunc
	done      chan struct{}
	renewed   time.Time
	leaving   bool
}

func (o *ownedShard) leave() {
	o.leaving = true
	o.cancel()
}

func (o *ownedShard) ended() bool {
	select {
	case <-o.done:
		return true
	default:
		return false
	}
}

//go:embed sql/heartbeat.sql
var heartbeatSQL string

//go:embed sql/renew.sql
var renewSQL string

//go:embed sql/claim.sql
var claimSQL string

// balance renews the leases, gives up what exceeds this relay's share and claims
// what nobody holds.
func (r *Relay) balance(ctx context.Context, owned map[int]*ownedShard) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Lease/2)
	defer cancel()
	began := time.Now()

	var live int
	if err := r.cfg.Pool.QueryRow(ctx, heartbeatSQL, r.id, r.cfg.Lease).Scan(&live); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	if len(owned) == 0 {
		if _, err := r.cfg.Pool.Exec(ctx, `INSERT INTO millrace.relay_shards (shard) SELECT generate_series(0, $1 - 1) ON CONFLICT DO NOTHING`, Shards); err != nil {
			return fmt.Errorf("create shard rows: %w", err)
		}
	}
	shards, floors := floors(owned)
	mine, err := r.shardQuery(ctx, renewSQL, r.id, r.cfg.Lease, shards, floors)
	if err != nil {
		return fmt.Errorf("renew leases: %w", err)
	}
	r.lastOK.Store(began.UnixNano())
	active := 0
	for shard, o := range owned {
		switch {
		case o.leaving && o.ended():
			delete(owned, shard)
		case o.leaving:
		case slices.Contains(mine, shard):
			o.renewed = began
			active++
		default:
			r.log.Info().Int("shard", shard).Msg("another relay has taken the shard over")
			o.leave()
		}
	}
	share := (Shards + live - 1) / live
	for _, o := range owned {
		if active > share && !o.leaving {
			o.leave()
			active--
		}
	}
	// A lease of ours without a publisher is one whose publisher has just ended, or
	// that an earlier round claimed and lost the answer of. It would be renewed for
	// ever: publish it or give it back.
	for _, shard := range mine {
		if _, held := owned[shard]; held {
			continue
		}
		if active < share {
			owned[shard] = r.start(ctx, shard, began)
			active++
		} else if err := r.release(ctx, shard); err != nil {
			return err
		}
	}
	if active < share {
		claimed, err := r.shardQuery(ctx, claimSQL, r.id, r.cfg.Lease, share-active)
		if err != nil {
			return fmt.Errorf("claim shards: %w", err)
		}
		for _, shard := range claimed {
			if _, held := owned[shard]; !held {
				owned[shard] = r.start(ctx, shard, began)
			}
		}
	}
	r.metrics.owned.Set(float64(len(owned)))
	return r.metrics.lag.look(ctx, r, owned)
}

func (r *Relay) start(ctx context.Context, shard int, now time.Time) *ownedShard {
	// The publisher outlives the call that started it; Run stops it by name.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &publisher{relay: r, shard: shard, log: r.log.With().Int("shard", shard).Logger()}
	o := &ownedShard{publisher: p, cancel: cancel, done: make(chan struct{}), renewed: now}
	go func() {
		p.run(ctx)
		close(o.done)
		select {
		case r.stopped <- struct{}{}:
		default:
		}
	}()
	return o
}

// floors returns from where on the owned shards would be read.
func floors(owned map[int]*ownedShard) (shards []int16, floors []int64) {
	for shard, o := range owned {
		if o.publisher.begun.Load() {
			shards = append(shards, int16(shard)) //nolint:gosec // below Shards
			floors = append(floors, o.publisher.floor.Load())
		}
	}
	return shards, floors
}

func (r *Relay) shardQuery(ctx context.Context, sql string, args ...any) ([]int, error) {
	rows, err := r.cfg.Pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int])
}

// dropExpired stops publishers whose lease has run out unrenewed: another relay
// owns the shard by now. Fencing would stop them anyway, this stops the noise.
func (r *Relay) dropExpired(owned map[int]*ownedShard) {
	for shard, o := range owned {
		if o.leaving && o.ended() {
			delete(owned, shard)
		} else if time.Since(o.renewed) > r.cfg.Lease {
			o.leave()
		}
	}
	r.metrics.owned.Set(float64(len(owned)))
}

func (r *Relay) release(ctx context.Context, shard int) error {
	_, err := r.cfg.Pool.Exec(ctx, `UPDATE millrace.relay_shards SET owner = NULL WHERE shard = $1 AND owner = $2`, shard, r.id)
	if err != nil {
		return fmt.Errorf("release shard %d: %w", shard, err)
	}
	return nil
}

// leave gives the shards back, so that others need not wait for the leases.
func (r *Relay) leave(ctx context.Context, owned map[int]*ownedShard) {
	for _, o := range owned {
		o.cancel()
	}
	for _, o := range owned {
		<-o.done
	}
	r.metrics.owned.Set(0)
	r.metrics.lag.clear()
	// The caller's context has ended; giving the leases back must not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Lease/2)
	defer cancel()
	_, err := r.cfg.Pool.Exec(ctx, `WITH gone AS (DELETE FROM millrace.relays WHERE id = $1)
		UPDATE millrace.relay_shards SET owner = NULL WHERE owner = $1`, r.id)
	if err != nil {
		r.log.Warn().Err(err).Msg("cannot give shards back; they move when their leases run out")
	}
}
