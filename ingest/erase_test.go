package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"millrace"
	"millrace/ingest"
)

// erasers answers each id in its own way.
type erasers map[string]func() (millrace.Erasure, error)

func (e erasers) Erase(_ context.Context, id string) (millrace.Erasure, error) {
	if answer := e[id]; answer != nil {
		return answer()
	}
	return millrace.Erasure{}, fmt.Errorf("conversation %q: %w", id, millrace.ErrNotFound)
}

func (f *fixture) erase(path string) *response { return f.do(http.MethodDelete, path, nil, nil) }

func TestEraseTellsWhetherAnythingIsLeft(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	store := erasers{
		"small": func() (millrace.Erasure, error) {
			return millrace.Erasure{ConversationID: "small", ErasedAt: at, Done: true}, nil
		},
		"a/b?": func() (millrace.Erasure, error) { return millrace.Erasure{ConversationID: "a/b?", ErasedAt: at}, nil },
	}
	f := start(t, func(c *ingest.Config) { c.Eraser = store })
	if r := f.erase("/v1/conversations/small"); r.status != http.StatusNoContent || len(r.body) > 0 {
		t.Errorf("%d %q", r.status, r.body)
	}
	r := f.erase("/v1/conversations/a%2Fb%3F")
	var got millrace.Erasure
	if err := json.Unmarshal(r.body, &got); err != nil || r.status != http.StatusAccepted || got != (millrace.Erasure{ConversationID: "a/b?", ErasedAt: at}) {
		t.Errorf("%d %s %v", r.status, r.body, err)
	}
}

func TestEraseRefusesWhatItCannotDo(t *testing.T) {
	store := erasers{"out": func() (millrace.Erasure, error) { return millrace.Erasure{}, errors.New("out") }}
	f := start(t, func(c *ingest.Config) { c.Eraser = store })
	for path, want := range map[string]string{
		"/v1/conversations/nobody":      "conversation-not-found",
		"/v1/conversations/out":         "store-unavailable",
		"/v1/conversations/%01":         "invalid-parameter",
		"/v1/conversations/out?force=1": "invalid-parameter",
	} {
		if p := f.erase(path).problem(t); p.Type != ingest.ProblemPrefix+want {
			t.Errorf("%s: %s, want %s", path, p.Type, want)
		}
	}
	if p := start(t, nil).erase("/v1/conversations/x").problem(t); p.Type != ingest.ProblemPrefix+"store-not-configured" {
		t.Errorf("without a store: %s", p.Type)
	}
}

// A reader that goes on from a number misses nothing of what came after an erasure.
func TestConversationIsReadOnFromBeforeItsErasure(t *testing.T) {
	var all []millrace.Message
	for seq := int64(1); seq <= 7; seq++ {
		all = append(all, millrace.Message{Seq: seq, Role: "user", Content: fmt.Sprint(seq)})
	}
	store := &memoryStore{all: all, conv: millrace.Conversation{ID: "c", Version: 9, Erased: 4, Length: 3, Tail: all[5:]}}
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	for query, want := range map[string]string{
		"":                 "[5 6 7]",
		"?after=2":         "[5 6 7]",
		"?after=2&limit=2": "[5 6]next 6",
		"?after=5":         "[6 7]",
		"?after=7":         "[]",
	} {
		var page ingest.ConversationPage
		r := f.do(http.MethodGet, "/v1/conversations/c"+query, nil, nil)
		if err := json.Unmarshal(r.body, &page); err != nil {
			t.Fatalf("%s: %v: %s", query, err, r.body)
		}
		seqs := []int64{}
		for _, m := range page.Messages {
			seqs = append(seqs, m.Seq)
		}
		got := fmt.Sprint(seqs)
		if page.NextAfter != nil {
			got += fmt.Sprintf("next %d", *page.NextAfter)
		}
		if got != want || page.Length != 3 || page.Erased != 4 {
			t.Errorf("%q: %s, length %d, erased %d; want %s, 3, 4", query, got, page.Length, page.Erased, want)
		}
	}
}
