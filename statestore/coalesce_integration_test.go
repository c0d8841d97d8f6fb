//go:build integration

package statestore

import (
	"fmt"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace"
)

// together returns the completion of a turn that has answered other tasks as well.
func together(base millrace.Conversation, leader string, others ...string) millrace.Completion {
	c := completion(leader, base)
	for _, id := range others {
		c.Also = append(c.Also, millrace.Also{Task: completion(id, base).Task})
	}
	return c
}

func keysOf(ids ...string) []millrace.Key {
	keys := make([]millrace.Key, len(ids))
	for i, id := range ids {
		keys[i] = millrace.Key{ID: id}
	}
	return keys
}

func mustCoalesce(t *testing.T, s *Store, leader string, members []millrace.Key, anew bool, want []millrace.Key) {
	t.Helper()
	got, err := s.Coalesce(t.Context(), millrace.Key{ID: leader}, members, anew)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s is to be answered with %v, want %v", leader, got, want)
	}
}

func TestTasksThatEndTogetherAreOneTransaction(t *testing.T) {
	s := newStore(t)
	mustCoalesce(t, s, "a", keysOf("b", "c"), false, keysOf("b", "c"))
	mustCommit(t, s, together(millrace.Conversation{ID: "conv"}, "a", "b", "c"), millrace.Committed)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.completions WHERE commit_token = (SELECT commit_token FROM millrace.completions WHERE task_id = 'a')`); n != 3 {
		t.Errorf("%d completions of the transaction, want 3", n)
	}
	for id, calls := range map[string]int64{"a": 1, "b": 0, "c": 0} {
		r, err := s.Task(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != millrace.StatusCompleted || r.Attempts != 1 || string(r.Result) != `"done"` || r.Usage.Calls != calls {
			t.Errorf("%s: %+v", id, r)
		}
	}
	conv, err := s.Conversation(t.Context(), "conv")
	if err != nil {
		t.Fatal(err)
	}
	if conv.Version != 1 || conv.Length != 1 {
		t.Errorf("version %d with %d messages, want one of each", conv.Version, conv.Length)
	}
	var order string
	err = s.cfg.Pool.QueryRow(t.Context(), `SELECT string_agg(event_id, ' ' ORDER BY id) FROM millrace.outbox`).Scan(&order)
	if err != nil || order != "a.event0 a.result b.result c.result" {
		t.Errorf("events %s, %v", order, err)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.steps`); n != 0 {
		t.Errorf("%d rows are left in the journal", n)
	}
}

func TestOfTasksThatEndTogetherNoneIsCompletedTwice(t *testing.T) {
	s := newStore(t)
	base := millrace.Conversation{ID: "conv"}
	cancelled := completion("b", base)
	cancelled.Status, cancelled.Effects = millrace.StatusCancelled, millrace.Effects{}
	mustCommit(t, s, cancelled, millrace.Committed)
	// One of them has been cancelled: the others end as they were to.
	mustCommit(t, s, together(base, "a", "b", "c"), millrace.Committed)
	mustCommit(t, s, together(base, "a", "b", "c"), millrace.AlreadyCompleted)
	for id, want := range map[string]millrace.Status{"a": millrace.StatusCompleted, "b": millrace.StatusCancelled, "c": millrace.StatusCompleted} {
		if r, err := s.Task(t.Context(), id); err != nil || r.Status != want {
			t.Errorf("%s is %s, %v; want %s", id, r.Status, err, want)
		}
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox WHERE event_id = $1`, id+".result"); n != 1 {
			t.Errorf("%d result events of %s", n, id)
		}
	}
	// The turn's own task is done, or its conversation has moved on: nothing of the
	// others, whatever they were to end as.
	mustCommit(t, s, together(millrace.Conversation{ID: "conv", Version: 1}, "a", "d", "e"), millrace.AlreadyCompleted)
	mustCommit(t, s, together(base, "f", "d", "e"), millrace.Conflict)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.completions WHERE task_id IN ('d', 'e', 'f')`); n != 0 {
		t.Errorf("%d completions without their turn", n)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox`); n != 4 {
		t.Errorf("%d events, want a result for each of three tasks and one more", n)
	}
}

func TestDeadLettersOfTasksThatEndTogether(t *testing.T) {
	s := newStore(t)
	c := together(millrace.Conversation{ID: "conv"}, "a", "b")
	letter := func(value string) *millrace.DeadLetter {
		return &millrace.DeadLetter{Reason: millrace.ReasonPermanent, Detail: "no", Record: millrace.Record{Topic: "t", Offset: 7, Value: []byte(value)}}
	}
	c.Status, c.Effects, c.Error = millrace.StatusFailed, millrace.Effects{}, "no"
	c.DeadLetter, c.Also[0].DeadLetter = letter("of a"), letter("of b")
	mustCommit(t, s, c, millrace.Committed)
	for _, id := range []string{"a", "b"} {
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.dead_letters WHERE task_id = $1 AND value = $2`, id, []byte("of "+id)); n != 1 {
			t.Errorf("%d dead letters of %s", n, id)
		}
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox WHERE event_id = $1`, id+".deadletter"); n != 1 {
			t.Errorf("%d copies of the dead letter of %s", n, id)
		}
	}
}

// Two workers believe that they own the conversation, and have formed different
// groups; a third cancels.
func TestGroupsThatOverlapLeaveEachTaskOnce(t *testing.T) {
	pool, redis := newDatabase(t), newRedis(t)
	workers := []*Store{run(t, Config{Pool: pool, Redis: redis}), run(t, Config{Pool: pool, Redis: redis})}
	const rounds = 50
	var wg sync.WaitGroup
	for r := range rounds {
		conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d", r)}
		a, b, c, d := fmt.Sprintf("a-%d", r), fmt.Sprintf("b-%d", r), fmt.Sprintf("c-%d", r), fmt.Sprintf("d-%d", r)
		for w, turn := range []millrace.Completion{together(conv, a, d, c, b), together(conv, b, c, d)} {
			wg.Go(func() {
				if _, err := workers[w].Commit(t.Context(), turn); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if _, err := workers[0].Cancel(t.Context(), c, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for what, sql := range map[string]string{
		"tasks with other than one result event":   `SELECT count(*) FROM (SELECT event_id FROM millrace.outbox WHERE event_id LIKE '%.result' GROUP BY 1 HAVING count(*) <> 1) AS x`,
		"completions without a result event":       `SELECT count(*) FROM millrace.completions k WHERE NOT EXISTS (SELECT FROM millrace.outbox o WHERE o.event_id = k.task_id || '.result')`,
		"result events without a completion":       `SELECT count(*) FROM millrace.outbox o WHERE o.event_id LIKE '%.result' AND NOT EXISTS (SELECT FROM millrace.completions k WHERE o.event_id = k.task_id || '.result')`,
		"conversations that moved other than once": `SELECT count(*) FROM millrace.conversations WHERE version <> 1 OR length <> 1`,
		"turns that left other than all of their effects": `SELECT count(*) FROM millrace.conversations c WHERE NOT EXISTS (SELECT FROM millrace.messages m JOIN millrace.completions k USING (task_id)
			WHERE m.conversation_id = c.id AND k.status = 'completed' AND c.state::text = '{"last":"' || k.task_id || '"}')`,
	} {
		if n := count(t, pool, sql); n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
}

func TestTheJournalHoldsAGroupUntilItsLeaderIsComplete(t *testing.T) {
	s := newStore(t)
	base := millrace.Conversation{ID: "conv"}
	mustCoalesce(t, s, "a", nil, false, nil)
	mustCommit(t, s, completion("done", millrace.Conversation{ID: "other"}), millrace.Committed)
	odd := millrace.Key{ID: `"quoted" ünd\`, Redrive: 2}
	mustCoalesce(t, s, "a", append(keysOf("b", "done"), odd), false, append(keysOf("b"), odd))
	mustCoalesce(t, s, "a", keysOf("b", "c", "d"), false, append(keysOf("b"), odd))
	mustCoalesce(t, s, "a", nil, false, append(keysOf("b"), odd))
	mustCommit(t, s, completion("b", base), millrace.Committed)
	mustCoalesce(t, s, "a", nil, false, append(keysOf("b"), odd)) // what it was formed of

	// Steps of the group fit no other one.
	step := millrace.Step{Task: millrace.Key{ID: "a"}, Name: "llm"}
	if _, _, err := s.Begin(t.Context(), step); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), step, millrace.StepResult{Output: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	mustCoalesce(t, s, "a", keysOf("b", "c"), true, keysOf("c"))
	if _, done, err := s.Begin(t.Context(), step); err != nil || done {
		t.Errorf("a step of another group is used: %v, %v", done, err)
	}
	if n := testutil.ToFloat64(s.metrics.repaid.WithLabelValues("regrouped")); n != 1 {
		t.Errorf("%v repaid steps counted", n)
	}
	// Nor do those of a run alone fit a group.
	if _, _, err := s.Begin(t.Context(), millrace.Step{Task: millrace.Key{ID: "alone"}, Name: "llm"}); err != nil {
		t.Fatal(err)
	}
	mustCoalesce(t, s, "alone", keysOf("x"), false, nil)
	mustCoalesce(t, s, "x", keysOf("alone", "y"), false, keysOf("y"))
	mustCommit(t, s, completion("a", millrace.Conversation{ID: "conv", Version: 1}), millrace.Committed)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.steps WHERE task_id = 'a'`); n != 0 {
		t.Errorf("%d rows are left of the complete task", n)
	}
}
