package demo

import (
	"context"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"millrace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// outcome is what a run has left behind, for tests to spoil.
type outcome struct {
	sent        map[string][]sentTask
	results     map[string]*taskResult
	history     []message
	status      map[string]string
	readProblem error
}

func (o *outcome) messages(_ context.Context, _ string, yield func(message)) error {
	for _, m := range o.history {
		yield(m)
	}
	return o.readProblem
}

func (o *outcome) completions(_ context.Context, _ string, yield func(taskID, status, problem string)) error {
	for id, status := range o.status {
		problem := ""
		if status != "completed" {
			problem = "it broke"
		}
		yield(id, status, problem)
	}
	return o.readProblem
}

// flawless is two conversations of three turns, as they should come out.
func flawless() *outcome {
	o := &outcome{sent: make(map[string][]sentTask), results: make(map[string]*taskResult), status: make(map[string]string)}
	for _, conversation := range []string{"a", "b"} {
		for _, n := range []string{"0", "1", "2"} {
			id, text := conversation+n, "say "+n
			o.sent[conversation] = append(o.sent[conversation], sentTask{id: id, text: text, priority: millrace.Normal})
			o.results[id] = &taskResult{TaskResult: millrace.TaskResult{TaskID: id, ConversationID: conversation}, events: 1}
			o.status[id] = "completed"
			o.history = append(o.history,
				message{conversation: conversation, role: millrace.RoleUser, content: text, taskID: id},
				message{conversation: conversation, role: millrace.RoleAssistant, content: "Re: " + text, taskID: id})
		}
	}
	return o
}

func TestPlantedFaultsAreCounted(t *testing.T) {
	// History by index: a0 question, a0 answer, a1 question, a1 answer, …
	remove := func(o *outcome, i, n int) { o.history = append(o.history[:i], o.history[i+n:]...) }
	swap := func(o *outcome, i, j int) { o.history[i], o.history[j] = o.history[j], o.history[i] }
	repeat := func(o *outcome, i int) {
		o.history = append(o.history[:i+1], append([]message{o.history[i]}, o.history[i+1:]...)...)
	}
	tests := map[string]struct {
		spoil func(o *outcome)
		want  string
	}{
		"nothing":                  {func(*outcome) {}, "lost=0 duplicate=0 reordered=0"},
		"a missing result":         {func(o *outcome) { delete(o.results, "a1") }, "lost=1 duplicate=0 reordered=0"},
		"two missing results":      {func(o *outcome) { delete(o.results, "a1"); delete(o.results, "b0") }, "lost=2 duplicate=0 reordered=0"},
		"a doubled result":         {func(o *outcome) { o.results["a1"].events = 2 }, "lost=0 duplicate=1 reordered=0"},
		"a tripled result":         {func(o *outcome) { o.results["a1"].events = 3 }, "lost=0 duplicate=2 reordered=0"},
		"a missing completion":     {func(o *outcome) { delete(o.status, "b2") }, "lost=1 duplicate=0 reordered=0"},
		"a missing answer":         {func(o *outcome) { remove(o, 3, 1) }, "lost=1 duplicate=0 reordered=0"},
		"a missing last answer":    {func(o *outcome) { remove(o, 11, 1) }, "lost=1 duplicate=0 reordered=0"},
		"a missing question":       {func(o *outcome) { remove(o, 2, 1) }, "lost=1 duplicate=0 reordered=1"},
		"a missing turn":           {func(o *outcome) { remove(o, 2, 2) }, "lost=1 duplicate=0 reordered=0"},
		"a missing conversation":   {func(o *outcome) { remove(o, 0, 6) }, "lost=3 duplicate=0 reordered=0"},
		"all of a task missing":    {func(o *outcome) { remove(o, 2, 2); delete(o.results, "a1"); delete(o.status, "a1") }, "lost=1 duplicate=0 reordered=0"},
		"a repeated question":      {func(o *outcome) { repeat(o, 2) }, "lost=0 duplicate=1 reordered=0"},
		"a repeated answer":        {func(o *outcome) { repeat(o, 3) }, "lost=0 duplicate=1 reordered=0"},
		"a repeated turn":          {func(o *outcome) { repeat(o, 3); o.history[4].role = millrace.RoleUser; o.history[4].content = "say 1" }, "lost=0 duplicate=1 reordered=0"},
		"swapped turns":            {func(o *outcome) { swap(o, 0, 2); swap(o, 1, 3) }, "lost=0 duplicate=0 reordered=1"},
		"swapped questions":        {func(o *outcome) { swap(o, 0, 2) }, "lost=0 duplicate=0 reordered=3"},
		"an answer too late":       {func(o *outcome) { swap(o, 1, 2) }, "lost=0 duplicate=0 reordered=2"},
		"an answer before":         {func(o *outcome) { swap(o, 0, 1) }, "lost=0 duplicate=0 reordered=1"},
		"another text":             {func(o *outcome) { o.history[2].content = "say 2" }, "lost=1 duplicate=0 reordered=0"},
		"a stranger's message":     {func(o *outcome) { o.history[5].taskID = "x" }, "lost=1 duplicate=1 reordered=0"},
		"a stranger's result":      {func(o *outcome) { o.results["x"] = &taskResult{events: 1} }, "lost=0 duplicate=1 reordered=0"},
		"a stranger's history":     {func(o *outcome) { o.history[0].conversation = "x" }, "lost=1 duplicate=1 reordered=1"},
		"two turns of one task id": {func(o *outcome) { o.sent["a"][1] = o.sent["a"][0] }, "lost=1 duplicate=3 reordered=0"},
		"a failed task":            {func(o *outcome) { o.status["a1"] = "failed"; remove(o, 2, 2) }, "lost=1 duplicate=0 reordered=0"},
		"the payload as it was":    {func(o *outcome) { o.history[0].content = `{"text": "say 0"}` }, "lost=0 duplicate=0 reordered=0"},
		"a tool's message between": {func(o *outcome) {
			o.history = append(o.history, message{conversation: "b", role: millrace.RoleTool, taskID: "b2"})
		}, "lost=0 duplicate=0 reordered=0"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			o := flawless()
			test.spoil(o)
			v, err := judge(t.Context(), "", o.sent, o.results, o)
			if err != nil {
				t.Fatal(err)
			}
			if v.String() != test.want {
				t.Errorf("got %s, want %s: %s", v, test.want, strings.Join(v.Findings, "; "))
			}
			if v.Good() != (len(v.Findings) == 0) {
				t.Errorf("verdict %s with findings %q", v, v.Findings)
			}
		})
	}
}

func TestLossSaysWhy(t *testing.T) {
	o := flawless()
	o.status["a1"] = "failed"
	o.history = append(o.history[:2], o.history[4:]...)
	v, err := judge(t.Context(), "", o.sent, o.results, o)
	if err != nil {
		t.Fatal(err)
	}
	want := "lost: task a1 of a has no user message and no answer (failed: it broke)"
	if len(v.Findings) != 1 || v.Findings[0] != want {
		t.Errorf("findings %q, want %q", v.Findings, want)
	}
}

func TestUnreadableHistoryIsNoVerdict(t *testing.T) {
	o := flawless()
	o.readProblem = context.DeadlineExceeded
	if v, err := judge(t.Context(), "", o.sent, o.results, o); err == nil {
		t.Errorf("got the verdict %s, want an error", v)
	}
}
