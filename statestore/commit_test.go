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
