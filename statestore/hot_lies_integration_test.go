//go:build integration

package statestore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

// seen is a handler's state that depends on everything it has seen: a turn that
// commits on another state or history than the true one leaves a wrong state.
func seen(t *testing.T, s *Store, conv millrace.Conversation) []byte {
	t.Helper()
	turn := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "reader", Conversation: conv.ID}, Conversation: conv, History: s})
	history, err := turn.History(t.Context(), int(min(conv.Length, 1000)))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %q", conv.ID, conv.State)
	for _, m := range history {
		fmt.Fprintf(sum, "%d %q %q;", m.Seq, m.Role, m.Content)
	}
	return fmt.Appendf(nil, `{"seen": "%x"}`, sum.Sum(nil))
}

// commitOn commits a turn of two messages on conv and returns the outcome, with the
// conversation as it is afterwards if it committed.
func commitOn(t *testing.T, s *Store, id string, conv millrace.Conversation) (millrace.Conversation, millrace.Outcome) {
	t.Helper()
	c := completion(id, conv)
	c.Effects.State = seen(t, s, conv)
	c.Effects.Messages = []millrace.Message{{Role: millrace.RoleUser, Content: "asked by " + id}, {Role: millrace.RoleAssistant, Content: "answered to " + id}}
	outcome, err := s.Commit(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return conv.After(&c.Task, &c.Effects, c.FinishedAt), outcome
}

// takeTurn does as a worker does that has not had the conversation before: it
// opens it, and reloads it after a conflict. It returns the conversation and how
// many conflicts there were.
func takeTurn(t *testing.T, s *Store, id, conversation string) (next millrace.Conversation, conflicts int) {
	t.Helper()
	conv := mustOpen(t, s, conversation)
	for ; conflicts < 3; conflicts++ {
		next, outcome := commitOn(t, s, id, conv)
		if outcome == millrace.Committed {
			return next, conflicts
		}
		var err error
		if conv, err = s.Reload(t.Context(), &millrace.Task{ID: id, Conversation: conversation}); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("%s conflicts without end", id)
	return next, conflicts
}

// liar is a store whose Redis holds copies of the conversation conv, and of
// another that has come as far.
type liar struct {
	*Store
	redis      *redis.Client
	hash, list string
	// truth is conv, was what it was at every version before.
	truth millrace.Conversation
	was   []millrace.Conversation
}

func newLiar(t *testing.T, cfg Config) *liar {
	t.Helper()
	l := &liar{redis: newRedis(t)}
	cfg.Pool, cfg.Redis = newDatabase(t), l.redis
	l.Store = run(t, cfg)
	l.hash, l.list = l.hot.keys("conv")
	mustOpen(t, l.Store, "conv")
	l.truth = millrace.Conversation{ID: "conv"}
	for i := range 4 {
		l.was = append(l.was, l.truth)
		l.truth, _ = takeTurn(t, l.Store, fmt.Sprintf("task-%d", i), "conv")
		takeTurn(t, l.Store, fmt.Sprintf("other-%d", i), "other")
	}
	l.mustBeHot(t, "at first")
	return l
}

func (l *liar) plant(t *testing.T, conv millrace.Conversation) {
	t.Helper()
	if err := l.hot.put(t.Context(), []millrace.Conversation{conv}, true); err != nil {
		t.Fatal(err)
	}
}

// copyOther puts the copy of the other conversation in the place of conv's, and
// whichever of its keys are named.
func (l *liar) copyOther(t *testing.T, parts ...string) {
	t.Helper()
	hash, list := l.hot.keys("other")
	for from, to := range map[string]string{hash: l.hash, list: l.list} {
		if slices.Contains(parts, to) {
			if err := l.redis.Copy(t.Context(), from, to, l.redis.Options().DB, true).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// mustBeTrue checks what PostgreSQL has against the truth.
func (l *liar) mustBeTrue(t *testing.T, when string) {
	t.Helper()
	got, err := l.Conversation(t.Context(), "conv")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, l.truth) {
		t.Errorf("%s PostgreSQL has %+v\nwant %+v", when, got, l.truth)
	}
}

// mustBeHot checks that a worker gets the truth from Redis, with as many messages
// as there are in the copy.
func (l *liar) mustBeHot(t *testing.T, when string) {
	t.Helper()
	found, spoilt, err := l.hot.open(t.Context(), []*millrace.Task{{ID: "look", Conversation: "conv"}})
	if err != nil || spoilt || found[0] == nil {
		t.Errorf("%s there is no readable hot copy: %v", when, err)
		return
	}
	got := *found[0]
	if n := len(got.Tail); n == 0 || n > len(l.truth.Tail) || !reflect.DeepEqual(got.Tail, l.truth.Tail[len(l.truth.Tail)-n:]) {
		t.Errorf("%s the hot copy's messages are %+v\nwhich do not end %+v", when, got.Tail, l.truth.Tail)
	}
	got.Tail = l.truth.Tail
	if !reflect.DeepEqual(got, l.truth) {
		t.Errorf("%s the hot copy is %+v\nwant %+v", when, got, l.truth)
	}
}

var lies = map[string]func(t *testing.T, l *liar){
	"nothing left":            func(t *testing.T, l *liar) { l.redis.FlushDB(t.Context()) },
	"one version behind":      func(t *testing.T, l *liar) { l.plant(t, l.was[3]) },
	"far behind":              func(t *testing.T, l *liar) { l.plant(t, l.was[1]) },
	"before the first turn":   func(t *testing.T, l *liar) { l.plant(t, l.was[0]) },
	"another conversation's":  func(t *testing.T, l *liar) { l.copyOther(t, l.hash, l.list) },
	"another one's hash":      func(t *testing.T, l *liar) { l.copyOther(t, l.hash) },
	"hash without list":       func(t *testing.T, l *liar) { l.redis.Del(t.Context(), l.list) },
	"list without hash":       func(t *testing.T, l *liar) { l.redis.Del(t.Context(), l.hash) },
	"newest message lost":     func(t *testing.T, l *liar) { l.redis.RPop(t.Context(), l.list) },
	"oldest messages lost":    func(t *testing.T, l *liar) { l.redis.LTrim(t.Context(), l.list, 3, -1) },
	"list in the wrong order": func(t *testing.T, l *liar) { l.redis.LMove(t.Context(), l.list, l.list, "LEFT", "RIGHT") },
	"garbage for a message":   func(t *testing.T, l *liar) { l.redis.LSet(t.Context(), l.list, 2, "\xff\x00") },
	"garbage for a document":  func(t *testing.T, l *liar) { l.redis.HSet(t.Context(), l.hash, "d", `{"s":"{}","l":8}`) },
	"half a document": func(t *testing.T, l *liar) {
		l.redis.HSet(t.Context(), l.hash, "d", l.redis.HGet(t.Context(), l.hash, "d").Val()[:6])
	},
	"no document":               func(t *testing.T, l *liar) { l.redis.HDel(t.Context(), l.hash, "d") },
	"no version":                func(t *testing.T, l *liar) { l.redis.HDel(t.Context(), l.hash, "v") },
	"garbage for a version":     func(t *testing.T, l *liar) { l.redis.HSet(t.Context(), l.hash, "v", "x") },
	"an infinite version":       func(t *testing.T, l *liar) { l.redis.HSet(t.Context(), l.hash, "v", "inf") },
	"a version below nothing":   func(t *testing.T, l *liar) { l.redis.HSet(t.Context(), l.hash, "v", "-5") },
	"garbage for a size":        func(t *testing.T, l *liar) { l.redis.HSet(t.Context(), l.hash, "b", "x") },
	"hash of another type":      func(t *testing.T, l *liar) { l.redis.Set(t.Context(), l.hash, "x", time.Minute) },
	"list of another type":      func(t *testing.T, l *liar) { l.redis.Set(t.Context(), l.list, "x", time.Minute) },
	"a length that is too high": func(t *testing.T, l *liar) { l.plantLength(t, l.truth.Length+2) },
	"a length that is too low":  func(t *testing.T, l *liar) { l.plantLength(t, l.truth.Length-2) },
	"the write of an older turn, late": func(t *testing.T, l *liar) {
		if err := l.hot.advance(t.Context(), []advanced{{base: 1, next: l.was[2], added: 2}}); err != nil {
			t.Fatal(err)
		}
	},
	"the write of an older turn, after a flush": func(t *testing.T, l *liar) {
		l.redis.FlushDB(t.Context())
		if err := l.hot.advance(t.Context(), []advanced{{base: 1, next: l.was[2], added: 2}}); err != nil {
			t.Fatal(err)
		}
	},
	"the same write twice": func(t *testing.T, l *liar) {
		if err := l.hot.advance(t.Context(), []advanced{{base: 3, next: l.truth, added: 2}}); err != nil {
			t.Fatal(err)
		}
	},
	"an older reading, late": func(t *testing.T, l *liar) {
		if err := l.hot.put(t.Context(), []millrace.Conversation{l.was[2]}, false); err != nil {
			t.Fatal(err)
		}
	},
}

// plantLength leaves the list and the version as they are.
func (l *liar) plantLength(t *testing.T, length int64) {
	t.Helper()
	lie := l.truth
	lie.Length = length
	l.redis.HSet(t.Context(), l.hash, "d", encodeHotDoc(&lie))
}

// Whatever Redis says of a conversation, the turn that commits has seen what
// PostgreSQL has, and Redis is right again afterwards.
func TestWhateverRedisSaysTurnsCommitOnTheTruth(t *testing.T) {
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			l := newLiar(t, Config{})
			want, _ := trueTurn(t, l)
			lie(t, l)
			got, conflicts := takeTurn(t, l.Store, "next", "conv")
			if conflicts > 1 {
				t.Errorf("%d conflicts", conflicts)
			}
			l.truth = got
			if string(got.State) != string(want) || got.Version != 5 || got.Length != 10 {
				t.Errorf("the turn has seen something else: %+v, want the state %s", got, want)
			}
			l.truth.Tail = l.allMessages(t)
			l.mustBeTrue(t, "after the turn")
			l.mustBeHot(t, "after the turn")
		})
	}
}

// A turn that leaves its conversation as it is may do so, or emit or answer what it
// does, because of what it has seen.
func TestATurnThatChangesNothingCommitsOnTheTruthToo(t *testing.T) {
	for name, effects := range map[string]millrace.Effects{
		"nothing": {},
		"result":  {Result: []byte(`"because of the state"`)},
		"events":  {Events: []millrace.Event{{Type: "said", Topic: "events", Data: []byte(`{}`)}}},
	} {
		for copied, lie := range map[string]func(l *liar) millrace.Conversation{
			"old":   func(l *liar) millrace.Conversation { return l.was[2] },
			"new":   func(l *liar) millrace.Conversation { return l.was[0] },
			"ahead": func(*liar) millrace.Conversation { return millrace.Conversation{ID: "conv", Version: 9} },
		} {
			t.Run(name+" "+copied, func(t *testing.T) {
				l := newLiar(t, Config{})
				l.plant(t, lie(l))
				c := completion("next", mustOpen(t, l.Store, "conv"))
				c.Effects = effects
				mustCommit(t, l.Store, c, millrace.Conflict)
				if n := count(t, l.cfg.Pool, `SELECT count(*) FROM millrace.outbox WHERE event_id LIKE '%next%'`); n != 0 {
					t.Errorf("%d events of a turn that has not committed", n)
				}
				var err error
				if c.Base, err = l.Reload(t.Context(), &c.Task); err != nil {
					t.Fatal(err)
				}
				mustCommit(t, l.Store, c, millrace.Committed)
				l.mustBeTrue(t, "after the turn")
				l.mustBeHot(t, "after the turn")
			})
		}
	}
}

// A worker that has the conversation at hand does not ask Redis. What it commits
// puts a wrong copy right, or the next one to open it does.
func TestWhateverRedisSaysALaneGoesOn(t *testing.T) {
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			l := newLiar(t, Config{})
			lie(t, l)
			next, outcome := commitOn(t, l.Store, "next", l.truth)
			if outcome != millrace.Committed {
				t.Fatal(outcome)
			}
			l.truth = next
			l.mustBeTrue(t, "after the turn")
			got, conflicts := takeTurn(t, l.Store, "another", "conv")
			if want := next.Length + 2; conflicts > 1 || got.Length != want {
				t.Errorf("%d conflicts, %d messages, want %d", conflicts, got.Length, want)
			}
			if string(got.State) != string(seen(t, l.Store, next)) {
				t.Error("the next worker has seen something else")
			}
			l.truth = got
			l.truth.Tail = l.allMessages(t)
			l.mustBeTrue(t, "after the next turn")
			l.mustBeHot(t, "after the next turn")
		})
	}
}

// A copy that is of no use to anybody does not keep others of its batch from being
// written.
func TestASpoiltCopyHoldsUpNoOther(t *testing.T) {
	for _, key := range []string{"hash", "list"} {
		l := newLiar(t, Config{})
		spoilt := map[string]string{"hash": l.hash, "list": l.list}[key]
		other, err := l.Conversation(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		hash, list := l.hot.keys("other")
		l.redis.Del(t.Context(), hash, list)
		l.redis.Set(t.Context(), spoilt, "x", time.Minute)
		if err := l.hot.advance(t.Context(), []advanced{{base: 3, next: l.truth, added: 2}, {base: 3, next: other, added: 2}}); err != nil {
			t.Errorf("%s of another type: %v", key, err)
		}
		l.mustBeHot(t, "after the write")
		if got := mustOpen(t, l.Store, "other"); !reflect.DeepEqual(got, other) || l.redis.Exists(t.Context(), hash, list).Val() != 2 {
			t.Errorf("%s of another type: the other copy is %+v", key, got)
		}
	}
}

// trueTurn returns the state of a turn that sees the truth.
func trueTurn(t *testing.T, l *liar) ([]byte, millrace.Conversation) {
	t.Helper()
	conv, err := l.Conversation(t.Context(), "conv")
	if err != nil {
		t.Fatal(err)
	}
	return seen(t, l.Store, conv), conv
}

// allMessages returns the conversation's messages, of which there must be as many
// as PostgreSQL says, numbered from 1.
func (l *liar) allMessages(t *testing.T) []millrace.Message {
	t.Helper()
	messages, err := l.History(t.Context(), "conv", l.truth.Length, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range messages {
		if m.Seq != int64(i)+1 {
			t.Errorf("message %d has number %d", i+1, m.Seq)
		}
	}
	if rows := count(t, l.cfg.Pool, `SELECT count(*) FROM millrace.messages WHERE conversation_id = 'conv'`); rows != len(messages) || int64(rows) != l.truth.Length {
		t.Errorf("%d rows, %d messages, want %d", rows, len(messages), l.truth.Length)
	}
	return messages
}

// A copy that claims a version which PostgreSQL has not come to, be it the next
// one or one far ahead, is put right by the first turn on it.
func TestACopyAheadOfItsConversationIsPutRight(t *testing.T) {
	for _, ahead := range []int64{1, 95} {
		l := newLiar(t, Config{})
		want, _ := trueTurn(t, l)
		lie := l.truth
		lie.Version += ahead
		lie.State = []byte(`{"seen": "nothing"}`)
		l.plant(t, lie)
		got, conflicts := takeTurn(t, l.Store, "next", "conv")
		if conflicts != 1 || string(got.State) != string(want) {
			t.Errorf("%d ahead: %d conflicts, %+v", ahead, conflicts, got)
		}
		l.truth = got
		l.mustBeTrue(t, "after the turn")
		l.mustBeHot(t, "after the turn")
	}
}

// restore takes the last turn back, as a backup does that is older than it, and
// returns the conversation as Redis still has it.
func (l *liar) restore(t *testing.T) (lost millrace.Conversation) {
	t.Helper()
	for _, sql := range []string{
		`DELETE FROM millrace.messages WHERE conversation_id = 'conv' AND task_id = 'task-3'`,
		`DELETE FROM millrace.completions WHERE task_id = 'task-3'`,
	} {
		if _, err := l.cfg.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	before := l.was[3]
	if _, err := l.cfg.Pool.Exec(t.Context(), `UPDATE millrace.conversations SET version = $1, length = $2, state = $3 WHERE id = 'conv'`,
		before.Version, before.Length, string(before.State)); err != nil {
		t.Fatal(err)
	}
	lost, l.truth = l.truth, before
	return lost
}

// The conversation is erased, and Redis goes on saying what it was, without the
// tombstone that would keep such a copy from being written.
func TestACopyFromBeforeAnErasureIsNotCommittedOn(t *testing.T) {
	l := newLiar(t, Config{})
	if _, err := l.Erase(t.Context(), "conv"); err != nil {
		t.Fatal(err)
	}
	l.redis.FlushDB(t.Context())
	l.plant(t, l.truth)
	want, err := l.Reload(t.Context(), &millrace.Task{ID: "look", Conversation: "conv"})
	if err != nil {
		t.Fatal(err)
	}
	l.redis.FlushDB(t.Context())
	l.plant(t, l.truth)
	got, conflicts := takeTurn(t, l.Store, "next", "conv")
	if conflicts != 1 || string(got.State) != string(seen(t, l.Store, want)) || got.Length != 2 || got.Tail[0].Seq != 9 {
		t.Errorf("%d conflicts, %+v", conflicts, got)
	}
	l.truth = got
	l.mustBeTrue(t, "after the turn")
	l.mustBeHot(t, "after the turn")
}

// PostgreSQL is restored and Redis is not, so that a version comes twice. The
// turn that commits it the second time has not read the copy: Redis was out.
func TestACopyOfALostTurnIsReplacedWhenItsVersionComesAgain(t *testing.T) {
	l := newLiar(t, Config{})
	lost := l.restore(t)
	next, outcome := commitOn(t, l.Store, "instead", l.truth)
	if outcome != millrace.Committed || next.Version != lost.Version {
		t.Fatalf("%v, version %d, want %d", outcome, next.Version, lost.Version)
	}
	l.truth = next
	l.mustBeTrue(t, "after the turn")
	l.mustBeHot(t, "after the turn")
}

func TestACopyOfALostTurnIsNotCommittedOn(t *testing.T) {
	l := newLiar(t, Config{})
	l.restore(t)
	want, _ := trueTurn(t, l)
	got, conflicts := takeTurn(t, l.Store, "instead", "conv")
	if conflicts != 1 || string(got.State) != string(want) {
		t.Errorf("%d conflicts, %+v, want the state %s", conflicts, got, want)
	}
	l.truth = got
	l.mustBeTrue(t, "after the turn")
	l.mustBeHot(t, "after the turn")
}

// Redis is asked and answers with what it had two turns ago, as a replica that is
// behind does, while what is written goes through.
func TestARedisThatAnswersLateCostsOneConflict(t *testing.T) {
	l := newLiar(t, Config{})
	hook := &lateAnswers{hash: l.hash}
	l.redis.AddHook(hook)
	hook.record = true
	mustOpen(t, l.Store, "conv")
	hook.record = false
	for i := range 2 {
		l.truth, _ = commitOn(t, l.Store, fmt.Sprintf("meanwhile-%d", i), l.truth)
	}
	want, _ := trueTurn(t, l)
	hook.replay = true
	got, conflicts := takeTurn(t, l.Store, "next", "conv")
	hook.replay = false
	if conflicts != 1 || string(got.State) != string(want) {
		t.Errorf("%d conflicts, %+v, want the state %s", conflicts, got, want)
	}
	l.truth = got
	l.mustBeTrue(t, "after the turn")
	l.mustBeHot(t, "after the turn")
}

// lateAnswers keeps the answers about a conversation and gives them again.
type lateAnswers struct {
	hash           string
	record, replay bool
	doc            []any
	messages       []string
}

func (h *lateAnswers) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (h *lateAnswers) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h *lateAnswers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		err := next(ctx, commands)
		for i, c := range commands {
			if c.Name() != "hmget" || c.Args()[1] != h.hash {
				continue
			}
			doc, messages := c.(*redis.SliceCmd), commands[i+1].(*redis.StringSliceCmd)
			if h.record {
				h.doc, h.messages = doc.Val(), messages.Val()
			}
			if h.replay {
				doc.SetVal(h.doc)
				messages.SetVal(h.messages)
			}
		}
		return err
	}
}
