package app

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/ingest"
	"millrace/statestore"
)

// Ingest is the HTTP API with its producer and its readers.
type Ingest struct {
	producer *kgo.Client
	lag      *lagReader
	pool     *pgxpool.Pool
	redis    redis.UniversalClient
	server   *ingest.Server
}

// NewIngest returns an ingest. Only Kafka must answer: the API takes tasks in
// without PostgreSQL and Redis, it just cannot tell what became of them.
//
// rules classify tasks; nil means the settings' rules file, if there is one.
func NewIngest(ctx context.Context, p *Process, rules *ingest.Rules) (*Ingest, error) {
	in := &Ingest{}
	if err := in.open(ctx, p, rules); err != nil {
		in.Close()
		return nil, err
	}
	return in, nil
}

func (in *Ingest) open(ctx context.Context, p *Process, rules *ingest.Rules) error {
	s := &p.Settings
	opts, err := p.kafkaOptions("ingest")
	if err != nil {
		return err
	}
	if err := awaitTopics(ctx, s, opts, p.Log); err != nil {
		return err
	}
	if in.producer, err = kgo.NewClient(append(opts, ingest.ProducerOptions()...)...); err != nil {
		return fmt.Errorf("open producer: %w", err)
	}
	if in.pool, err = openPostgres(ctx, s); err != nil {
		return err
	}
	if in.redis, err = openRedis(s); err != nil {
		return err
	}
	store, err := statestore.New(statestore.Config{Pool: in.pool, Redis: in.redis, KeyPrefix: s.RedisPrefix(), TTL: s.RedisTTL, DropResults: !bool(s.Results), Logger: &p.Log})
	if err != nil {
		return err
	}
	in.lag = newLagReader(in.producer, s)
	cfg := ingest.Config{
		Producer: in.producer, TopicPrefix: s.TopicPrefix, Priorities: s.Priorities,
		Reader: store, Canceller: store, Eraser: store, Scheduler: store, Announcer: store, Fingerprints: store, Lag: in.lag,
		LocalOnly: s.Auth == "off", MaxPayloadBytes: s.MaxPayloadBytes, Logger: p.Log, Metrics: p.Metrics,
	}
	if rules == nil && s.RulesFile != "" {
		if rules, err = ingest.LoadRules(s.RulesFile, s.Priorities); err != nil {
			return fmt.Errorf("MILLRACE_RULES_FILE: %w", err)
		}
	}
	if rules != nil {
		cfg.Classifier = rules
	}
	if in.server, err = ingest.New(cfg); err != nil {
		return err
	}
	p.Health.Ready("kafka", func(ctx context.Context) error {
		if err := in.producer.Ping(ctx); err != nil {
			return fmt.Errorf("kafka: %w", err)
		}
		return nil
	})
	return nil
}

// Close releases the connections. The server must have stopped.
func (in *Ingest) Close() {
	if in.producer != nil {
		in.producer.Close()
	}
	if in.pool != nil {
		in.pool.Close()
	}
	if in.redis != nil {
		_ = in.redis.Close()
	}
}

// RunIngest runs an ingest process.
func RunIngest(ctx context.Context, p *Process) error {
	front, err := listen(ctx, p, "ingest")
	if err != nil {
		return err
	}
	return front.whileStarting(ctx, func(ctx context.Context) (part, func(), error) {
		in, err := NewIngest(ctx, p, nil)
		if err != nil {
			return part{}, nil, err
		}
		front.mux.Handle("/", in.server.Handler())
		return part{"ingest", in.server.Run}, in.Close, nil
	})
}
