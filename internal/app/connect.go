package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/internal/kafka"
	"millrace/internal/settings"
	"millrace/statestore"
)

// startTimeout is how long a process waits for its services before it gives up:
// they may be starting as well.
const startTimeout = time.Minute

// openPostgres returns a pool. It does not connect.
func openPostgres(ctx context.Context, s *settings.Settings) (*pgxpool.Pool, error) {
	cfg, err := s.PostgresConfig()
	if err != nil {
		return nil, fmt.Errorf("MILLRACE_POSTGRES_URL: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL: %w", err)
	}
	return pool, nil
}

// openRedis returns a client. It does not connect.
func openRedis(s *settings.Settings) (redis.UniversalClient, error) {
	// By itself the client writes lines of its own to standard error, between those of
	// the log, for each connection that it cannot make. Its calls return the same errors.
	logging.Disable()
	// Every slot may open a conversation at the same moment.
	client, err := s.RedisClient(min(s.Slots, 200))
	if err != nil {
		return nil, fmt.Errorf("MILLRACE_REDIS_URL: %w", err)
	}
	return client, nil
}

// awaitSchema waits until PostgreSQL answers and checks the schema. One that is
// too old does not become newer by waiting, nor one that is too new older.
func awaitSchema(ctx context.Context, pool *pgxpool.Pool, log zerolog.Logger) error {
	return await(ctx, log, "PostgreSQL", func(ctx context.Context) error {
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return millrace.Unavailable(fmt.Errorf("connect to PostgreSQL: %w", err))
		}
		defer conn.Release()
		schema, err := statestore.Migrator{}.Schema(ctx, conn.Conn())
		if err != nil {
			return millrace.Unavailable(err)
		}
		if err := schema.Check(); err != nil {
			return err
		}
		if err := notePooler(ctx, conn.Conn(), log); err != nil {
			return millrace.Unavailable(err)
		}
		if schema.Version > schema.Wanted {
			log.Info().Int32("schema", schema.Version).Int32("own", schema.Wanted).Msg("the schema is ahead of this program, which works with it")
		}
		return nil
	})
}

// awaitTopics waits until Kafka answers and checks that the topics are as the
// settings say.
func awaitTopics(ctx context.Context, s *settings.Settings, opts []kgo.Opt, log zerolog.Logger) error {
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("open Kafka client: %w", err)
	}
	defer cl.Close()
	return await(ctx, log, "Kafka", func(ctx context.Context) error {
		if err := cl.Ping(ctx); err != nil {
			return millrace.Unavailable(fmt.Errorf("connect to Kafka at %v: %w", s.KafkaBrokers, err))
		}
		err := kafka.CheckTopics(ctx, kadm.NewClient(cl), kafka.Topics(s))
		var network net.Error
		if kerr.IsRetriable(err) || errors.As(err, &network) || errors.Is(err, io.EOF) {
			return millrace.Unavailable(err)
		}
		return err
	})
}

// await tries until check succeeds, fails for a reason that no waiting mends, or
// startTimeout has passed.
func await(ctx context.Context, log zerolog.Logger, what string, check func(context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 200*time.Millisecond, 5*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		err := check(attempt)
		if err != nil && !millrace.IsUnavailable(err) && attempt.Err() == nil {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(startTimeout), backoff.WithNotify(func(err error, next time.Duration) {
		log.Warn().Err(err).Dur("retry_in", next).Msgf("waiting for %s", what)
	}))
	return err
}

// Migrate brings the schema up to date and returns the migrations it ran, also
// when one after them failed.
func Migrate(ctx context.Context, s *settings.Settings, log zerolog.Logger) ([]statestore.Migration, error) {
	var ran []statestore.Migration
	err := onPostgres(ctx, s, log, func(ctx context.Context, conn *pgx.Conn) error {
		var err error
		ran, err = statestore.Migrator{Logger: &log}.Run(ctx, conn)
		return err
	})
	return ran, err
}

// Schema says how the database stands to this program.
func Schema(ctx context.Context, s *settings.Settings, log zerolog.Logger) (statestore.Schema, error) {
	var schema statestore.Schema
	err := onPostgres(ctx, s, log, func(ctx context.Context, conn *pgx.Conn) error {
		var err error
		schema, err = statestore.Migrator{}.Schema(ctx, conn)
		return err
	})
	return schema, err
}

func onPostgres(ctx context.Context, s *settings.Settings, log zerolog.Logger, do func(context.Context, *pgx.Conn) error) error {
	cfg, err := s.PostgresConfig()
	if err != nil {
		return fmt.Errorf("MILLRACE_POSTGRES_URL: %w", err)
	}
	var conn *pgx.Conn
	err = await(ctx, log, "PostgreSQL", func(ctx context.Context) error {
		conn, err = pgx.ConnectConfig(ctx, cfg.ConnConfig)
		if err != nil {
			return millrace.Unavailable(fmt.Errorf("connect to PostgreSQL: %w", err))
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	return do(ctx, conn)
}
