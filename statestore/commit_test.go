package statestore

import (
	"strings"
	"testing"

	"millrace"
)

func pending(id, conversation string, bytes int) *pendingCommit {
	return &pendingCommit{completion: millrace.Completion{
		Task:    millrace.Task{ID: id, Conversation: conversation},
		Effects: millrace.Effects{Messages: []millrace.Message{{Role: "user", Content: strings.Repeat("x", bytes)}}},
	}}
}

func TestATransactionHoldsATaskAndAConversationOnce(t *testing.T) {
	q := newQueue[*pendingCommit]()
	for _, p := range []*pendingCommit{
		pending("a", "1", 0), pending("b", "1", 0), pending("a", "2", 0), pending("c", "", 0), pending("d", "", 0), pending("c", "", 0),
	} {
		q.push(p)
	}
	for _, want := range []string{"acd", "bac"} {
		var got strings.Builder
		for _, p := range q.take(500, newAdmission()) {
			got.WriteString(p.completion.Task.ID)
		}
		if got.String() != want {
			t.Errorf("transaction of %s, want %s", got.String(), want)
		}
	}
}

func TestATransactionHoldsATaskThatEndsAlongWithAnotherOnce(t *testing.T) {
	q := newQueue[*pendingCommit]()
	group := pending("a", "1", 0)
	group.completion.Also = []millrace.Also{{Task: millrace.Task{ID: "m", Conversation: "1"}}, {Task: millrace.Task{ID: "n", Conversation: "1"}}}
	for _, p := range []*pendingCommit{pending("x", "", 0), group, pending("n", "2", 0), pending("y", "", 0)} {
		q.push(p)
	}
	q.push(pending("m", "", 0))
	for _, want := range []string{"xay", "nm"} {
		var got strings.Builder
		for _, p := range q.take(500, newAdmission()) {
			got.WriteString(p.completion.Task.ID)
		}
		if got.String() != want {
			t.Errorf("transaction of %s, want %s", got.String(), want)
		}
	}
	q.push(pending("n", "2", 0))
	q.push(group)
	if got := q.take(500, newAdmission()); len(got) != 1 || got[0].completion.Task.ID != "n" {
		t.Errorf("a group came into the transaction of one of its tasks: %d in it", len(got))
	}
}

func TestATransactionIsBoundedInBytes(t *testing.T) {
	q := newQueue[*pendingCommit]()
	const third = maxBatchBytes / 3
	for _, p := range []*pendingCommit{
		pending("a", "", third), pending("b", "", third), pending("c", "", 2*third), pending("d", "", 1), // d must not overtake c
		pending("e", "", 2*maxBatchBytes), pending("f", "", 1),
	} {
		q.push(p)
	}
	for _, want := range []string{"ab", "cd", "e", "f"} {
		var got strings.Builder
		for _, p := range q.take(500, newAdmission()) {
			got.WriteString(p.completion.Task.ID)
		}
		if got.String() != want {
			t.Errorf("transaction of %s, want %s", got.String(), want)
		}
	}
}
