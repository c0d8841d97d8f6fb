//go:build integration

package statestore

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace"
)

// talk commits turns of two messages each and returns the conversation as the
// lane of a worker carries it on.
func talk(t *testing.T, s *Store, id string, turns int) millrace.Conversation {
	t.Helper()
	conv := millrace.Conversation{ID: id}
	for i := range turns {
		c := completion(fmt.Sprintf("%s-%d", id, i), conv)
		c.Effects.Messages = []millrace.Message{
			{Role: millrace.RoleUser, Content: fmt.Sprintf("question %d \xff", i)}, {Role: millrace.RoleAssistant, Content: "answer"},
		}
		mustCommit(t, s, c, millrace.Committed)
		conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)
	}
	return conv
}

func mustOpen(t *testing.T, s *Store, id string) millrace.Conversation {
	t.Helper()
	conv, err := s.Open(t.Context(), &millrace.Task{ID: "next", Conversation: id})
	if err != nil {
		t.Fatal(err)
	}
	return conv
}

// A hot copy that turns have moved on one by one, one that was written whole and
// PostgreSQL say the same.
func TestHotCopyFollowsItsConversation(t *testing.T) {
	for name, turns := range map[string]int{"short": 3, "longer than the tail": 50} {
		for _, id := range []string{"conv", "}", "a{b}c", "%7D", "ünï"} {
			t.Run(name+" "+id, func(t *testing.T) {
				s := newStore(t)
				// As the engine does, the first turn opens the conversation.
				mustOpen(t, s, id)
				want := talk(t, s, id, turns)
				moved := mustOpen(t, s, id)
				if !reflect.DeepEqual(moved, want) {
					t.Errorf("moved on: %+v\nwant %+v", moved, want)
				}
				if err := s.hot.put(t.Context(), []millrace.Conversation{want}, true); err != nil {
					t.Fatal(err)
				}
				if whole := mustOpen(t, s, id); !reflect.DeepEqual(whole, want) {
					t.Errorf("written whole: %+v\nwant %+v", whole, want)
				}
				hash, list := s.hot.keys(id)
				s.cfg.Redis.Del(t.Context(), hash)
				if durable := mustOpen(t, s, id); !reflect.DeepEqual(durable, want) {
					t.Errorf("from PostgreSQL, beside a list without its hash: %+v\nwant %+v", durable, want)
				}
				for _, key := range []string{hash, list} {
					if ttl := s.cfg.Redis.PTTL(t.Context(), key).Val(); ttl <= 0 || ttl > s.cfg.TTL {
						t.Errorf("%s lives for %s, want at most %s", key, ttl, s.cfg.TTL)
					}
				}
			})
		}
	}
}

// Whatever Redis has lost or made up of a list of messages, a turn sees no
// history with a gap or of another moment.
func TestHotCopyWithADamagedListGivesNoWrongHistory(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, s *Store, list string){
		"gone":        func(t *testing.T, s *Store, list string) { s.cfg.Redis.Del(t.Context(), list) },
		"newest lost": func(t *testing.T, s *Store, list string) { s.cfg.Redis.RPop(t.Context(), list) },
		"one in between": func(t *testing.T, s *Store, list string) {
			s.cfg.Redis.LSet(t.Context(), list, 2, s.cfg.Redis.LIndex(t.Context(), list, 3).Val())
		},
		"of a later turn": func(t *testing.T, s *Store, list string) {
			s.cfg.Redis.RPush(t.Context(), list, encodeHotMessage(&millrace.Message{Seq: 9, Role: "user", Content: "x"}))
		},
		"garbage":          func(t *testing.T, s *Store, list string) { s.cfg.Redis.LSet(t.Context(), list, 1, "x") },
		"another type":     func(t *testing.T, s *Store, list string) { s.cfg.Redis.Set(t.Context(), list, "x", time.Minute) },
		"oldest forgotten": func(t *testing.T, s *Store, list string) { s.cfg.Redis.LTrim(t.Context(), list, 5, -1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			mustOpen(t, s, "conv")
			want := talk(t, s, "conv", 4)
			_, list := s.hot.keys("conv")
			damage(t, s, list)
			check := func(when string, want millrace.Conversation) {
				t.Helper()
				got, err := s.Open(t.Context(), &millrace.Task{ID: "next", Conversation: "conv"})
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if got.Version != want.Version || got.Length != want.Length {
					t.Errorf("%s: version %d, %d messages, want %d, %d", when, got.Version, got.Length, want.Version, want.Length)
				}
				if n := len(got.Tail); n > 0 && !reflect.DeepEqual(got.Tail, want.Tail[len(want.Tail)-n:]) {
					t.Errorf("%s: tail %+v\nis not the end of %+v", when, got.Tail, want.Tail)
				}
			}
			check("after the damage", want)
			c := completion("another", want)
			mustCommit(t, s, c, millrace.Committed)
			check("after another turn", want.After(&c.Task, &c.Effects, c.FinishedAt))
		})
	}
}

func TestHotCopyIsMovedOnByWhatATurnHasAdded(t *testing.T) {
	s := newStore(t)
	mustOpen(t, s, "conv")
	conv := millrace.Conversation{ID: "conv"}
	var first string
	for i := range 2 {
		c := completion(fmt.Sprint(i), conv)
		c.Effects.Messages = []millrace.Message{{Role: millrace.RoleUser, Content: strings.Repeat("x", 100)}}
		mustCommit(t, s, c, millrace.Committed)
		conv = conv.After(&c.Task, &c.Effects, c.FinishedAt)
		_, list := s.hot.keys("conv")
		if i == 0 {
			// A mark that a copy written whole would not keep.
			first = s.cfg.Redis.LIndex(t.Context(), list, 0).Val() + " "
			s.cfg.Redis.LSet(t.Context(), list, 0, first)
			continue
		}
		if all := s.cfg.Redis.LRange(t.Context(), list, 0, -1).Val(); len(all) != 2 || !slices.Contains(all, first) {
			t.Errorf("the second turn has written the list anew: %q", all)
		}
	}
}
