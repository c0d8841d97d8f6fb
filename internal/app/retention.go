package app

import (
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"millrace/statestore"
)

// newRetention returns what deletes what is no longer to be kept.
func newRetention(p *Process, pool *pgxpool.Pool, client redis.UniversalClient) (*statestore.Retention, error) {
	s := &p.Settings
	return statestore.NewRetention(statestore.RetentionConfig{
		Pool: pool, Redis: client, KeyPrefix: s.RedisPrefix(), TTL: s.RedisTTL,
		Completions: s.RetentionCompletions, Conversations: s.RetentionConversations, DeadLetters: s.RetentionDeadLetters, Steps: s.RetentionSteps,
		Logger: &p.Log, Metrics: p.Metrics,
	})
}
