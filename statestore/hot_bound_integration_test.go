//go:build integration

package statestore

import (
	"fmt"
	"strings"
	"testing"

	"millrace"
)

// What Redis keeps of a conversation stays within its bounds after every turn, and
// a turn reads as much history as it asks for, wherever it lies.
func TestHotCopiesStayWithinTheirBounds(t *testing.T) {
	for name, size := range map[string]func(turn int) int{
		"large messages": func(int) int { return 60 << 10 },
		"one turn's messages are each too large": func(turn int) int {
			if turn == 4 {
				return maxHotTail + 1
			}
			return 100
		},
		"two fill it, nearly": func(int) int { return maxHotTail/2 - 64 },
		"many small messages": func(int) int { return 100 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			conv := mustOpen(t, s, "conv")
			_, list := s.hot.keys("conv")
			for i := range 40 {
				if i == 8 && size(0) > 100 {
					break
				}
				c := completion(fmt.Sprint(i), conv)
				c.Effects.Messages = nil
				for j := range 2 {
					text := fmt.Sprintf("%d.%d ", i, j)
					c.Effects.Messages = append(c.Effects.Messages, millrace.Message{Role: millrace.RoleUser, Content: text + strings.Repeat("x", max(0, size(i)-len(text)))})
				}
				mustCommit(t, s, c, millrace.Committed)
				conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)

				kept := s.cfg.Redis.LRange(t.Context(), list, 0, -1).Val()
				bytes := 0
				for _, m := range kept {
					bytes += len(m)
				}
				if len(kept) > millrace.TailLength || bytes > maxHotTail {
					t.Fatalf("after turn %d Redis has %d messages of %d bytes", i, len(kept), bytes)
				}
				opened := mustOpen(t, s, "conv")
				if opened.Version != conv.Version || opened.Length != conv.Length || len(opened.Tail) != len(kept) {
					t.Fatalf("after turn %d: version %d, %d messages, %d of them at hand; want %d, %d, %d", i,
						opened.Version, opened.Length, len(opened.Tail), conv.Version, conv.Length, len(kept))
				}
				if n := len(kept); n < millrace.TailLength && n < int(conv.Length) && bytes+len(encodeHotMessage(&conv.Tail[len(conv.Tail)-n-1])) <= maxHotTail {
					t.Errorf("after turn %d Redis has %d messages of %d bytes: one more would have fitted", i, n, bytes)
				}
				mustReadHistory(t, s, opened, len(kept)-1, len(kept), len(kept)+1, int(conv.Length), int(conv.Length)+1)
			}
		})
	}
}

// mustReadHistory reads the last n messages of a conversation, whose contents begin
// with turn.message, two of each turn.
func mustReadHistory(t *testing.T, s *Store, conv millrace.Conversation, ns ...int) {
	t.Helper()
	turn := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "reader", Conversation: conv.ID}, Conversation: conv, History: s})
	for _, n := range ns {
		want := max(0, min(n, int(conv.Length)))
		got, err := turn.History(t.Context(), n)
		if err != nil || len(got) != want {
			t.Fatalf("the last %d of %d messages: %d, %v", n, conv.Length, len(got), err)
		}
		for i, m := range got {
			at := int(conv.Length) - want + i
			if begin := fmt.Sprintf("%d.%d ", at/2, at%2); m.Seq != int64(at)+1 || !strings.HasPrefix(m.Content, begin) {
				t.Fatalf("message %d of the last %d has number %d and begins with %.10q, want %d, %q", i, n, m.Seq, m.Content, at+1, begin)
			}
		}
	}
}
