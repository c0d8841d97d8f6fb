package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"

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

func (h *hotCopies) toldErasures() told { return told{h.redis, h.erasures(), "erasures"} }

// tellErased tells the workers, and those that cannot hear it now by the list.
func (h *hotCopies) tellErased(ctx context.Context, e millrace.Erased) error {
	body, err := json.Marshal(toldErased(e))
	if err != nil {
		return fmt.Errorf("encode erasure: %w", err)
	}
	if err := h.toldErasures().tell(ctx, body); err != nil {
		return fmt.Errorf("tell workers of an erasure: %w", err)
	}
	return nil
}

// WatchErasures tells of erasures as they come, until ctx ends or Redis is lost. At
// first, and whenever the connection was lost and is there again, it tells of those
// of the last day, the newest 10,000 of them. It is a hint, which spares a turn on
// what is no more, and memory: a commit compares versions in any case.
func (s *Store) WatchErasures(ctx context.Context, told func([]millrace.Erased)) error {
	return s.hot.toldErasures().watch(ctx, func(bodies []string) {
		if erasures := decodeErasures(bodies); len(erasures) > 0 {
			told(erasures)
		}
	})
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
