package millrace_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"millrace"
)

func newTurn(journal millrace.Journal) *millrace.Turn {
	return millrace.NewTurn(millrace.TurnConfig{
		Task: millrace.Task{ID: "t", Conversation: "c", Payload: []byte(`{"n":1}`)},
		Conversation: millrace.Conversation{
			ID: "c", Version: 3, State: []byte(`{"turns":2}`), Length: 2,
			Tail: []millrace.Message{{Seq: 1, Role: "user", Content: "a"}, {Seq: 2, Role: "assistant", Content: "b"}},
		},
		Journal: journal,
	})
}

func TestTurnCollectsEffects(t *testing.T) {
	turn := newTurn(nil)
	var state struct{ Turns int }
	if err := turn.DecodeState(&state); err != nil || state.Turns != 2 {
		t.Fatalf("state %+v, %v", state, err)
	}
	steps := []error{
		turn.SetState(map[string]int{"turns": 3}),
		turn.Append(millrace.Message{Role: millrace.RoleUser, Content: "c"}),
		turn.Emit(millrace.Event{Type: "happened", Data: []byte("1")}),
		turn.Result("first"),
		turn.Result("last"),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	e := turn.Effects()
	if string(e.State) != `{"turns":3}` || len(e.Messages) != 1 || len(e.Events) != 1 || string(e.Result) != `"last"` {
		t.Errorf("effects %+v", e)
	}
	if err := turn.DecodeState(&state); err != nil || state.Turns != 3 {
		t.Errorf("a turn does not see the state it set: %+v, %v", state, err)
	}
	history, err := turn.History(t.Context(), 2)
	if err != nil || len(history) != 2 || history[0].Content != "b" || history[1].Content != "c" {
		t.Errorf("history %+v, %v", history, err)
	}
}

func TestTurnRefusesWhatCouldNotCommit(t *testing.T) {
	keyed := newTurn(nil)
	unkeyed := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "t"}})
	for name, err := range map[string]error{
		"state that is no JSON":    keyed.SetState(math.Inf(1)),
		"state not UTF-8":          keyed.SetState(jsonRaw("\"\xff\"")),
		"broken raw state":         keyed.SetState(jsonRaw("{")),
		"message without a role":   keyed.Append(millrace.Message{Content: "x"}),
		"message with a bad role":  keyed.Append(millrace.Message{Role: "a\x00"}),
		"event without a type":     keyed.Emit(millrace.Event{}),
		"event to the relay's own": keyed.Emit(millrace.Event{Type: "x", Topic: "relay.markers"}),
		"event to a bad topic":     keyed.Emit(millrace.Event{Type: "x", Topic: "a b"}),
		"event with a bad key":     keyed.Emit(millrace.Event{Type: "x", Key: "\xff"}),
		"event beyond a record":    keyed.Emit(millrace.Event{Type: "x", Data: make([]byte, millrace.MaxEventBytes+1)}),
		"result that is no JSON":   keyed.Result(make(chan int)),
		"state of unkeyed":         unkeyed.SetState(1),
		"messages of unkeyed":      unkeyed.Append(millrace.Message{Role: "user"}),
		"payload of another form":  keyed.Decode(new([]string)),
	} {
		if !millrace.IsPermanent(err) {
			t.Errorf("%s: error %v, want a permanent one", name, err)
		}
	}
	if e := keyed.Effects(); !e.Empty() {
		t.Errorf("refused effects were collected: %+v", e)
	}
}

type jsonRaw []byte

func (j jsonRaw) MarshalJSON() ([]byte, error) { return j, nil }

type mapJournal struct {
	done  map[string]millrace.StepResult
	begun []string
}

func (j *mapJournal) Begin(_ context.Context, s millrace.Step) (millrace.StepResult, bool, error) {
	j.begun = append(j.begun, s.Name)
	r, ok := j.done[s.Name]
	return r, ok, nil
}

func (j *mapJournal) Finish(_ context.Context, s millrace.Step, r millrace.StepResult) error {
	j.done[s.Name] = r
	return nil
}

func TestStepRunsOnceAndIsReplayed(t *testing.T) {
	journal := &mapJournal{done: make(map[string]millrace.StepResult)}
	calls := 0
	ask := func(turn *millrace.Turn) string {
		t.Helper()
		out, err := turn.Step(t.Context(), "llm", []byte("q"), func(context.Context) (millrace.StepResult, error) {
			calls++
			return millrace.StepResult{Output: fmt.Appendf(nil, "answer %d", calls), Usage: millrace.Usage{Calls: 1, OutputTokens: 5}}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	first := newTurn(journal)
	if a, b := ask(first), ask(first); a != "answer 1" || b != "answer 2" {
		t.Fatalf("answers %q, %q", a, b)
	}
	again := newTurn(journal) // the same task after a crash
	if a, b := ask(again), ask(again); a != "answer 1" || b != "answer 2" || calls != 2 {
		t.Errorf("replayed %q, %q with %d calls", a, b, calls)
	}
	if u := again.Effects().Usage; u.Calls != 2 || u.OutputTokens != 10 {
		t.Errorf("usage after a replay: %+v", u)
	}
	if want := "[llm llm#2 llm llm#2]"; fmt.Sprint(journal.begun) != want {
		t.Errorf("steps %v, want %s", journal.begun, want)
	}
	if !again.Journaled() || newTurn(journal).Journaled() {
		t.Error("Journaled does not tell whether a step has begun")
	}
}

func TestReservedNamesOfStepsAreRefused(t *testing.T) {
	journal := &mapJournal{done: make(map[string]millrace.StepResult)}
	_, err := newTurn(journal).Step(t.Context(), millrace.ReservedSteps+"coalesced", nil, func(context.Context) (millrace.StepResult, error) {
		t.Error("the step ran")
		return millrace.StepResult{}, nil
	})
	if !millrace.IsPermanent(err) {
		t.Errorf("%v, want a permanent error", err)
	}
}

func TestFailedStepIsNotRecorded(t *testing.T) {
	journal := &mapJournal{done: make(map[string]millrace.StepResult)}
	refused := millrace.RetryAfter(time.Second, errors.New("429"))
	_, err := newTurn(journal).Step(t.Context(), "llm", nil, func(context.Context) (millrace.StepResult, error) {
		return millrace.StepResult{}, refused
	})
	var after *millrace.RetryAfterError
	if !errors.As(err, &after) || len(journal.done) != 0 {
		t.Errorf("error %v, journal %v", err, journal.done)
	}
}

func TestConversationAfterATurn(t *testing.T) {
	c := millrace.Conversation{ID: "c", Version: 1, Length: 60, State: []byte("1")}
	for i := range 60 {
		c.Tail = append(c.Tail, millrace.Message{Seq: int64(i + 1)})
	}
	before := len(c.Tail)
	next := c.After(&millrace.Task{ID: "t"}, &millrace.Effects{Messages: make([]millrace.Message, 10)}, time.Now())
	if next.Version != 2 || next.Length != 70 || string(next.State) != "1" {
		t.Errorf("next %d %d %s", next.Version, next.Length, next.State)
	}
	if len(next.Tail) != millrace.TailLength || next.Tail[len(next.Tail)-1].Seq != 70 || next.Tail[0].Seq != 7 {
		t.Errorf("tail from %d to %d, %d long", next.Tail[0].Seq, next.Tail[len(next.Tail)-1].Seq, len(next.Tail))
	}
	if len(c.Tail) != before || c.Length != 60 {
		t.Error("the conversation before the turn has changed")
	}
}
