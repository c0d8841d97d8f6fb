//go:build integration

package statestore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"millrace"
)

func TestOpenReadsTheHotCopyAndFallsBackToPostgres(t *testing.T) {
	s := newStore(t)
	task := millrace.Task{ID: "task-2", Conversation: "conv"}
	c := completion("task-1", millrace.Conversation{ID: "conv"})
	c.Effects.Messages[0].Content = "any bytes: \xff\x00"
	mustCommit(t, s, c, millrace.Committed)

	check := func(from string) {
		t.Helper()
		conv, err := s.Open(t.Context(), &task)
		if err != nil {
			t.Fatal(err)
		}
		if conv.Version != 1 || conv.Length != 1 || string(conv.State) != `{"last":"task-1"}` {
			t.Errorf("from %s: %+v", from, conv)
		}
		if len(conv.Tail) != 1 || conv.Tail[0].Content != "any bytes: \xff\x00" || conv.Tail[0].Seq != 1 {
			t.Errorf("from %s: history %+v", from, conv.Tail)
		}
	}
	hash, list := s.hot.keys("conv")
	if n := s.cfg.Redis.Exists(t.Context(), hash, list).Val(); n != 2 {
		t.Fatal("no hot copy after the commit")
	}
	check("redis")
	s.cfg.Redis.FlushDB(t.Context())
	check("postgres")
	check("redis, refilled")
}

func TestAnOlderCommitNeverReplacesANewerHotCopy(t *testing.T) {
	s := newStore(t)
	for _, v := range []int64{5, 3, 4} {
		if err := s.hot.put(t.Context(), []millrace.Conversation{{ID: "conv", Version: v}}, false); err != nil {
			t.Fatal(err)
		}
	}
	conv, err := s.Open(t.Context(), &millrace.Task{ID: "x", Conversation: "conv"})
	if err != nil || conv.Version != 5 {
		t.Errorf("version %d, %v; want 5", conv.Version, err)
	}
}

func TestHistoryReachesBehindTheTail(t *testing.T) {
	s := newStore(t)
	c := completion("task", millrace.Conversation{ID: "conv"})
	for i := range 200 {
		c.Effects.Messages = append(c.Effects.Messages, millrace.Message{Role: millrace.RoleUser, Content: fmt.Sprint(i)})
	}
	mustCommit(t, s, c, millrace.Committed)
	conv, err := s.Open(t.Context(), &millrace.Task{ID: "next", Conversation: "conv"})
	if err != nil {
		t.Fatal(err)
	}
	if len(conv.Tail) != millrace.TailLength {
		t.Errorf("tail of %d messages, want %d", len(conv.Tail), millrace.TailLength)
	}
	turn := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "next", Conversation: "conv"}, Conversation: conv, History: s})
	got, err := turn.History(t.Context(), 150)
	if err != nil || len(got) != 150 || got[0].Content != "50" || got[149].Content != "199" {
		t.Errorf("%d messages, %v", len(got), err)
	}
}

func TestTaskStatusGoesFromQueuedToRunningToCompleted(t *testing.T) {
	s := newStore(t)
	task := millrace.Task{ID: "task", Conversation: "conv"}
	status := func() millrace.Status {
		r, err := s.Task(t.Context(), "task")
		if errors.Is(err, millrace.ErrNotFound) {
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	want := func(s millrace.Status) {
		t.Helper()
		if got := status(); got != s {
			t.Errorf("status %q, want %q", got, s)
		}
	}
	want("")
	if err := s.Queued(t.Context(), []millrace.Task{task}); err != nil {
		t.Fatal(err)
	}
	want(millrace.StatusQueued)
	if _, err := s.Open(t.Context(), &task); err != nil {
		t.Fatal(err)
	}
	want(millrace.StatusRunning)
	if err := s.Queued(t.Context(), []millrace.Task{task}); err != nil { // announced late
		t.Fatal(err)
	}
	want(millrace.StatusRunning)
	mustCommit(t, s, completion("task", millrace.Conversation{ID: "conv"}), millrace.Committed)
	want(millrace.StatusCompleted)
}

func TestJournalReplaysWhatIsRecorded(t *testing.T) {
	s := newStore(t)
	step := func(request string, version int64) millrace.Step {
		return millrace.Step{
			Task: millrace.Key{ID: "task"}, Name: "llm", RequestHash: sha256.Sum256([]byte(request)), BaseVersion: version,
		}
	}
	begin := func(st millrace.Step) (millrace.StepResult, bool) {
		t.Helper()
		r, done, err := s.Begin(t.Context(), st)
		if err != nil {
			t.Fatal(err)
		}
		return r, done
	}
	if _, done := begin(step("a", 1)); done {
		t.Fatal("a new step counts as done")
	}
	if _, done := begin(step("a", 1)); done {
		t.Fatal("an intent without an outcome counts as done")
	}
	answer := millrace.StepResult{Output: []byte("answer"), Usage: millrace.Usage{Calls: 1, InputTokens: 2, OutputTokens: 3}}
	if err := s.Finish(t.Context(), step("a", 1), answer); err != nil {
		t.Fatal(err)
	}
	if r, done := begin(step("a", 1)); !done || string(r.Output) != "answer" || r.Usage != answer.Usage {
		t.Errorf("replay gave %+v, %v", r, done)
	}
	var mismatch *millrace.StepMismatchError
	if _, _, err := s.Begin(t.Context(), step("b", 1)); !errors.As(err, &mismatch) || mismatch.Step != "llm" || !millrace.IsPermanent(err) {
		t.Errorf("another request under the same name: %v", err)
	}
	if _, done := begin(step("b", 2)); done {
		t.Error("a newer version of the conversation replayed the old answer")
	}
	if _, _, err := s.Begin(t.Context(), step("a", 1)); !millrace.IsUnavailable(err) {
		t.Errorf("a run that fell behind: %v", err)
	}
	c := completion("task", millrace.Conversation{ID: "conv"})
	mustCommit(t, s, c, millrace.Committed)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.steps`); n != 0 {
		t.Errorf("%d steps outlive their task", n)
	}
}

// TestTasksOfAConversationThatAreOpenedTogetherShareIt: the batch asks PostgreSQL
// for it once, however many tasks of it there are.
func TestTasksOfAConversationThatAreOpenedTogetherShareIt(t *testing.T) {
	s := newStore(t)
	mustCommit(t, s, completion("task", millrace.Conversation{ID: "conv"}), millrace.Committed)
	if err := s.cfg.Redis.FlushDB(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	var batch []*pendingOpen
	for _, id := range []string{"a", "b", "c"} {
		batch = append(batch, &pendingOpen{task: &millrace.Task{ID: id, Conversation: "conv"}, done: make(chan openResult, 1)})
	}
	s.openBatch(t.Context(), batch)
	for _, p := range batch {
		if r := <-p.done; r.err != nil || r.conv.Length != 1 || len(r.conv.Tail) != 1 {
			t.Errorf("%s: %+v, %v", p.task.ID, r.conv, r.err)
		}
	}
}
