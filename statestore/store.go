package statestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

// Config configures a [Store]. Zero values mean the defaults.
type Config struct {
	// Pool reaches PostgreSQL. Required.
	Pool *pgxpool.Pool
	// Redis holds the hot copies. Required.
	Redis redis.UniversalClient
	// KeyPrefix stands before every Redis key. Default "millrace:".
	KeyPrefix string
	// TTL is how long a hot copy outlives the last turn that wrote it. Default 24 h.
	TTL time.Duration
	// RunDegraded goes on from PostgreSQL alone while Redis is out. Default: a turn
	// does not start then.
	RunDegraded bool
	// DropResults writes no result events, nor hints that a task is queued or
	// running: nothing would ever take them back from a task that leaves no trace. A turn without effects then writes
	// nothing at all and is run at least once.
	DropResults bool
	// Committers is how many transactions commit side by side. Default 4.
	Committers int
	// BatchSize bounds the turns of one transaction. Default 500.
	BatchSize int
	// CommitTimeout is how long one commit is retried while PostgreSQL is out,
	// before the turn is told. Default 10 s.
	CommitTimeout time.Duration
	// TxConns is how many connections of the pool turns may keep at once for
	// transactions of their own ([Tx]); further turns wait. The pool must have more.
	// Default half of the pool.
	TxConns int
	// TxIdleTimeout is how long a turn's own transaction may wait for the handler's
	// next statement. PostgreSQL ends it then: a worker that hangs must not keep a
	// conversation locked. Default 5 s.
	TxIdleTimeout time.Duration
	// Published is told the outbox shards that a commit has written to. It must not
	// block. Nil tells nobody.
	Published func(shards ...int)
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
	// Metrics registers the store's metrics. Nil registers none.
	Metrics prometheus.Registerer
}

// Store reads and commits conversations. It implements what the engine, the
// HTTP API and turns need of it.
type Store struct {
	cfg         Config
	log         zerolog.Logger
	metrics     *metrics
	incarnation uuid.UUID
	hot         *hotCopies
	commits     *queue[*pendingCommit]
	lookups     *queue[*pendingLookup]
	opens       *queue[*pendingOpen]
	// txs has room for each turn that has a transaction of its own.
	txs    chan struct{}
	eraser *eraser
}

// New returns a store. Commits and look-ups wait until Run is called.
func New(cfg Config) (*Store, error) {
	var errs []error
	if cfg.Pool == nil {
		errs = append(errs, errors.New("no pool"))
	}
	if cfg.Redis == nil {
		errs = append(errs, errors.New("no redis client"))
	}
	if cfg.Committers < 0 || cfg.BatchSize < 0 {
		errs = append(errs, errors.New("negative committers or batch size"))
	}
	if cfg.TTL < 0 || cfg.CommitTimeout < 0 || cfg.TxIdleTimeout < 0 {
		errs = append(errs, errors.New("TTL, CommitTimeout and TxIdleTimeout must not be negative"))
	}
	if cfg.Pool != nil {
		// A handler that has one may read history, which takes another.
		if conns := int(cfg.Pool.Config().MaxConns); cfg.TxConns < 0 || cfg.TxConns > 0 && cfg.TxConns >= conns {
			errs = append(errs, fmt.Errorf("TxConns %d: want less than the %d connections of the pool", cfg.TxConns, conns))
		} else if cfg.TxConns == 0 {
			cfg.TxConns = conns / 2
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("statestore config: %w", err)
	}
	if cfg.KeyPrefix == "" {
		cfg.KeyPrefix = "millrace:"
	}
	if cfg.TTL == 0 {
		cfg.TTL = 24 * time.Hour
	}
	if cfg.Committers == 0 {
		cfg.Committers = 4
	}
	if cfg.BatchSize == 0 {
		cfg.BatchSize = 500
	}
	if cfg.CommitTimeout == 0 {
		cfg.CommitTimeout = 10 * time.Second
	}
	if cfg.TxIdleTimeout == 0 {
		cfg.TxIdleTimeout = 5 * time.Second
	}
	if cfg.Published == nil {
		cfg.Published = func(...int) {}
	}
	s := &Store{
		cfg:         cfg,
		log:         zerolog.Nop(),
		metrics:     newMetrics(cfg.Metrics),
		incarnation: uuid.New(),
		hot:         &hotCopies{redis: cfg.Redis, prefix: cfg.KeyPrefix, ttl: cfg.TTL, hints: !cfg.DropResults},
		commits:     newQueue[*pendingCommit](),
		lookups:     newQueue[*pendingLookup](),
		opens:       newQueue[*pendingOpen](),
		txs:         make(chan struct{}, cfg.TxConns),
	}
	if cfg.Logger != nil {
		s.log = cfg.Logger.With().Str("part", "statestore").Logger()
	}
	s.eraser = &eraser{pool: cfg.Pool, hot: s.hot, log: s.log}
	return s, nil
}

// Run commits until ctx ends, then commits what is still waiting and returns
// nil. Whoever calls Commit must have stopped by then.
func (s *Store) Run(ctx context.Context) error {
	// Commits outlive ctx: a turn that was handed in is not given up because the
	// worker has been told to stop. CommitTimeout bounds them.
	work := context.WithoutCancel(ctx)
	var wg sync.WaitGroup
	for range s.cfg.Committers {
		wg.Go(func() { s.commitLoop(work) })
	}
	wg.Go(func() { s.lookupLoop(work) })
	for range openers {
		wg.Go(func() { s.openLoop(work) })
	}
	<-ctx.Done()
	s.commits.close()
	s.lookups.close()
	s.opens.close()
	wg.Wait()
	return nil
}

// Check reports whether PostgreSQL answers and takes writes: a standby does not.
func (s *Store) Check(ctx context.Context) error {
	var readOnly string
	if err := s.cfg.Pool.QueryRow(ctx, "SHOW transaction_read_only").Scan(&readOnly); err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	if readOnly == "on" {
		return errors.New("PostgreSQL: takes no writes (transaction_read_only is on: a standby?)")
	}
	return nil
}

// CheckRedis reports whether Redis answers: of a cluster, every master, since each
// conversation has its own.
func (s *Store) CheckRedis(ctx context.Context) error {
	var err error
	if cluster, is := s.cfg.Redis.(*redis.ClusterClient); is {
		err = cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error { return master.Ping(ctx).Err() })
	} else {
		err = s.cfg.Redis.Ping(ctx).Err()
	}
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	return nil
}
