package app

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"millrace"
	"millrace/internal/settings"
	"millrace/statestore"
)

// Conversations is the conversations of an installation, to look after.
type Conversations struct {
	store *statestore.Store
	pool  *pgxpool.Pool
	redis redis.UniversalClient
}

// OpenConversations returns the conversations once PostgreSQL has answered and has
// the schema.
func OpenConversations(ctx context.Context, s *settings.Settings, log zerolog.Logger) (*Conversations, error) {
	c := &Conversations{}
	if err := c.open(ctx, s, log); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conversations) open(ctx context.Context, s *settings.Settings, log zerolog.Logger) (err error) {
	if c.pool, err = openPostgres(ctx, s); err != nil {
		return err
	}
	if c.redis, err = openRedis(s); err != nil {
		return err
	}
	if err := awaitSchema(ctx, c.pool, log); err != nil {
		return err
	}
	c.store, err = statestore.New(statestore.Config{Pool: c.pool, Redis: c.redis, KeyPrefix: s.RedisPrefix(), TTL: s.RedisTTL, Logger: &log})
	return err
}

// Close releases the connections.
func (c *Conversations) Close() {
	if c.pool != nil {
		c.pool.Close()
	}
	if c.redis != nil {
		_ = c.redis.Close()
	}
}

// Erase erases a conversation and waits until nothing of it is left to delete. It
// returns ctx's error when that ends before: the conversation is erased then, and
// the retention deletes the rest.
func (c *Conversations) Erase(ctx context.Context, id string) (millrace.Erasure, error) {
	for {
		erasure, err := c.store.Erase(ctx, id)
		if err != nil || erasure.Done {
			return erasure, err
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return erasure, context.Cause(ctx)
		case <-timer.C:
		}
	}
}
