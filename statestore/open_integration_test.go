//go:build integration

package statestore

import (
	"fmt"
	"sync"
	"testing"

	"millrace"
)

// Opens share round trips. Each must get its own conversation, whole, from
// wherever it lies.
func TestOpensThatComeTogetherGetTheirOwn(t *testing.T) {
	s := newStore(t)
	const conversations, turns = 150, 3
	for i := range conversations {
		conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d", i)}
		for turn := range turns {
			if i%3 == 0 {
				break // a third has had no turn yet
			}
			c := completion(fmt.Sprintf("task-%d-%d", i, turn), conv)
			mustCommit(t, s, c, millrace.Committed)
			conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)
		}
		if i%3 == 1 { // a third has no hot copy
			hash, list := s.hot.keys(conv.ID)
			s.cfg.Redis.Del(t.Context(), hash, list)
		}
	}
	check := func(from string) {
		var all sync.WaitGroup
		for i := range conversations {
			all.Go(func() {
				id := fmt.Sprintf("conv-%d", i)
				conv, err := s.Open(t.Context(), &millrace.Task{ID: fmt.Sprintf("next-%d", i), Conversation: id})
				if err != nil {
					t.Errorf("%s: %s: %v", from, id, err)
					return
				}
				want := turns
				if i%3 == 0 {
					want = 0
				}
				if conv.ID != id || conv.Version != int64(want) || len(conv.Tail) != want {
					t.Errorf("%s: asked for %s: %s at version %d with %d messages, want version %d", from, id, conv.ID, conv.Version, len(conv.Tail), want)
					return
				}
				for n, m := range conv.Tail {
					if m.Seq != int64(n+1) || m.TaskID != fmt.Sprintf("task-%d-%d", i, n) {
						t.Errorf("%s: %s: message %d is %+v", from, id, n, m)
					}
				}
			})
		}
		all.Wait()
	}
	check("from both")
	check("from Redis, refilled")
	s.cfg.Redis.FlushDB(t.Context())
	check("from PostgreSQL")
}
