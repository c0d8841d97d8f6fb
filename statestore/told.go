package statestore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// told is a channel in Redis with a list of the same name: workers hear of what is
// told, and read the list for what was told while they could not hear.
type told struct {
	redis redis.UniversalClient
	name  string
	what  string // for errors
}

const (
	// toldFor is how long a list keeps what was told, maxTold how much it holds.
	toldFor = 24 * time.Hour
	maxTold = 10_000
)

func (t told) tell(ctx context.Context, body []byte) error {
	now := time.Now()
	pipe := t.redis.Pipeline()
	pipe.ZAdd(ctx, t.name, redis.Z{Score: float64(now.UnixMilli()), Member: body})
	pipe.ZRemRangeByScore(ctx, t.name, "-inf", strconv.FormatInt(now.Add(-toldFor).UnixMilli(), 10))
	pipe.ZRemRangeByRank(ctx, t.name, 0, -maxTold-1)
	pipe.PExpire(ctx, t.name, toldFor)
	pipe.Publish(ctx, t.name, body)
	_, err := pipe.Exec(ctx)
	return err
}

// watch hears until ctx ends or Redis is lost. At first, and whenever the connection
// was lost and is there again, it hears the list.
func (t told) watch(ctx context.Context, hear func(bodies []string)) error {
	sub := t.redis.Subscribe(ctx, t.name)
	defer func() { _ = sub.Close() }()
	events := sub.ChannelWithSubscriptions(redis.WithChannelSize(1000))
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-events:
			if !open {
				return errors.New("watch " + t.what + ": the subscription has ended")
			}
			switch event := event.(type) {
			case *redis.Subscription:
				bodies, err := t.redis.ZRange(ctx, t.name, 0, -1).Result()
				if err != nil {
					return fmt.Errorf("read the list of %s: %w", t.what, err)
				}
				hear(bodies)
			case *redis.Message:
				hear([]string{event.Payload})
			}
		}
	}
}
