package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

//go:embed lua/erase.lua
var eraseLua string

var eraseScript = redis.NewScript(eraseLua)

// bury leaves a tombstone in place of a hot copy. As long as it lies there nothing
// that was read or committed before the erasure is written over it, and a copy that
// has gone on since stays.
func (h *hotCopies) bury(ctx context.Context, empty *millrace.Conversation) error {
	hash, list := h.keys(empty.ID)
	return eraseScript.Run(ctx, h.redis, []string{hash, list}, empty.Version, encodeHotDoc(empty), h.ttl.Milliseconds(), hotDocHead(empty)).Err()
}

func (h *hotCopies) dropFingerprints(ctx context.Context, tasks []string) error {
	if len(tasks) == 0 {
		return nil
	}
	pipe := h.redis.Pipeline()
	for _, id := range tasks {
		pipe.Del(ctx, h.fingerprintKey(id))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("erase fingerprints: %w", err)
	}
	return nil
}

// toldErased is an erasure as Redis carries it.
type toldErased struct {
	Conversation string `json:"c"`
	Version      int64  `json:"v"`
}

// erasures names the channel and the list of erasures.
func (h *hotCopies) erasures() string { return h.prefix + "erasures" }

// tellErased tells the workers, and those that cannot hear it now by the list.
func (h *hotCopies) tellErased(ctx context.Context, e millrace.Erased) error {
	body, err := json.Marshal(toldErased(e))
	if err != nil {
		return fmt.Errorf("encode erasure: %w", err)
	}
	now := time.Now()
	pipe := h.redis.Pipeline()
	pipe.ZAdd(ctx, h.erasures(), redis.Z{Score: float64(now.UnixMilli()), Member: body})
	pipe.ZRemRangeByScore(ctx, h.erasures(), "-inf", strconv.FormatInt(now.Add(-toldFor).UnixMilli(), 10))
	pipe.ZRemRangeByRank(ctx, h.erasures(), 0, -maxTold-1)
	pipe.PExpire(ctx, h.erasures(), toldFor)
	pipe.Publish(ctx, h.erasures(), body)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("tell workers of an erasure: %w", err)
	}
	return nil
}

// WatchErasures tells of erasures as they come, until ctx ends or Redis is lost. At
// first, and whenever the connection was lost and is there again, it tells of those
// of the last day, the newest 10,000 of them. It is a hint, which spares a turn on
// what is no more, and memory: a commit compares versions in any case.
func (s *Store) WatchErasures(ctx context.Context, told func([]millrace.Erased)) error {
	sub := s.cfg.Redis.Subscribe(ctx, s.hot.erasures())
	defer func() { _ = sub.Close() }()
	events := sub.ChannelWithSubscriptions(redis.WithChannelSize(1000))
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, open := <-events:
			if !open {
				return errors.New("watch erasures: the subscription has ended")
			}
			var bodies []string
			switch event := event.(type) {
			case *redis.Subscription:
				var err error
				if bodies, err = s.cfg.Redis.ZRange(ctx, s.hot.erasures(), 0, -1).Result(); err != nil {
					return fmt.Errorf("read the list of erasures: %w", err)
				}
			case *redis.Message:
				bodies = []string{event.Payload}
			}
			if erasures := decodeErasures(bodies); len(erasures) > 0 {
				told(erasures)
			}
		}
	}
}

// decodeErasures leaves out what is none.
func decodeErasures(bodies []string) []millrace.Erased {
	out := make([]millrace.Erased, 0, len(bodies))
	for _, body := range bodies {
		var e toldErased
		if json.Unmarshal([]byte(body), &e) == nil && e.Conversation != "" {
			out = append(out, millrace.Erased(e))
		}
	}
	return out
}
