package statestore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// fingerprintTTL is how long a fingerprint is remembered: longer than anybody
// repeats a request that has failed.
const fingerprintTTL = 24 * time.Hour

// Claim notes the fingerprint of each task id that has none yet, and returns the
// one that each of the ids has now. It takes one round trip to Redis, and Redis
// alone knows: one that has lost its data knows none.
func (s *Store) Claim(ctx context.Context, fingerprints map[string]string) (held map[string]string, err error) {
	if len(fingerprints) == 0 {
		return nil, nil
	}
	// SET NX GET in one command needs Redis 7; the two commands give the same,
	// because nobody replaces a fingerprint between them.
	pipe := s.cfg.Redis.Pipeline()
	gets := make(map[string]*redis.StringCmd, len(fingerprints))
	for id, fingerprint := range fingerprints {
		key := s.hot.fingerprintKey(id)
		pipe.SetNX(ctx, key, fingerprint, fingerprintTTL)
		gets[id] = pipe.Get(ctx, key)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("claim task ids: %w", err)
	}
	held = make(map[string]string, len(gets))
	for id, get := range gets {
		switch fingerprint, err := get.Result(); {
		case errors.Is(err, redis.Nil): // it ran out between the two commands
		case err != nil:
			return nil, fmt.Errorf("claim task ids: %w", err)
		default:
			held[id] = fingerprint
		}
	}
	return held, nil
}

func (h *hotCopies) fingerprintKey(id string) string { return h.prefix + "claim:" + id }
