package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"millrace"
	"millrace/ingest"
)

// Cancel makes memoryStore a Canceller: what has not ended is cancelled.
func (m *memoryStore) Cancel(ctx context.Context, id string, unseen bool) (millrace.TaskResult, error) {
	r, err := m.Task(ctx, id)
	if errors.Is(err, millrace.ErrNotFound) && unseen {
		r, err = millrace.TaskResult{TaskID: id}, nil
	}
	if err == nil && !r.Status.Final() {
		r.Status = millrace.StatusCancelled
		m.set(r)
	}
	return r, err
}

func startCancelling(t *testing.T, store *memoryStore) *fixture {
	return start(t, func(c *ingest.Config) { c.Reader, c.Canceller = store, store })
}

func (f *fixture) cancel(id string) *response {
	return f.do(http.MethodPost, "/v1/tasks/"+id+":cancel", nil, nil)
}

func TestCancelAnswersWithWhatBecameOfTheTask(t *testing.T) {
	store := &memoryStore{}
	f := startCancelling(t, store)
	for _, s := range []millrace.Status{millrace.StatusQueued, millrace.StatusRunning, millrace.StatusWaiting, millrace.StatusCompleted, millrace.StatusFailed, millrace.StatusCancelled} {
		store.set(millrace.TaskResult{TaskID: string(s), ConversationID: "c", Status: s})
	}
	store.set(millrace.TaskResult{TaskID: "odd:cancel", Status: millrace.StatusRunning})
	for id, want := range map[string]int{
		"queued": 200, "running": 200, "waiting": 200, "cancelled": 200, "completed": 409, "failed": 409, "never-seen": 202, "odd:cancel": 200,
	} {
		r := f.cancel(id)
		if r.status != want {
			t.Errorf("%s: status %d, want %d: %s", id, r.status, want, r.body)
			continue
		}
		if want == 409 {
			if p := r.problem(t); p.Type != "urn:millrace:problem:task-ended" || p.Detail != "task "+id+" is "+id {
				t.Errorf("%s: %+v", id, p)
			}
			continue
		}
		var result millrace.TaskResult
		if err := json.Unmarshal(r.body, &result); err != nil || result.TaskID != id || result.Status != millrace.StatusCancelled {
			t.Errorf("%s: %s", id, r.body)
		}
	}
}

func TestCancelsOfTasksThatNobodyKnowsAreBounded(t *testing.T) {
	store := &memoryStore{}
	f := startCancelling(t, store)
	refused := 0
	for n := range 500 {
		r := f.cancel(fmt.Sprintf("random-%d", n))
		if r.status != http.StatusTooManyRequests {
			continue
		}
		refused++
		if p := r.problem(t); p.Type != "urn:millrace:problem:too-many-cancels" || r.header.Get("Retry-After") == "" {
			t.Fatalf("%+v, headers %v", p, r.header)
		}
	}
	if refused == 0 {
		t.Error("500 cancels of random ids in a row were all taken")
	}
	store.set(millrace.TaskResult{TaskID: "known", Status: millrace.StatusQueued})
	if r := f.cancel("known"); r.status != http.StatusOK {
		t.Errorf("a task that is known could not be cancelled meanwhile: %d", r.status)
	}
}

func TestCancelRefusesWhatItCannotDo(t *testing.T) {
	store := &memoryStore{err: errors.New("out")}
	f := startCancelling(t, store)
	for path, want := range map[string]string{
		"/v1/tasks/x:cancel":         "store-unavailable",
		"/v1/tasks/:cancel":          "invalid-parameter",
		"/v1/tasks/%01:cancel":       "invalid-parameter",
		"/v1/tasks/x:cancel?force=1": "invalid-parameter",
		"/v1/tasks/x":                "method-not-allowed",
		"/v1/tasks/x:destroy":        "method-not-allowed",
	} {
		if p := f.do(http.MethodPost, path, nil, nil).problem(t); p.Type != ingest.ProblemPrefix+want {
			t.Errorf("%s: %s, want %s", path, p.Type, want)
		}
	}
	if p := start(t, nil).cancel("x").problem(t); p.Type != ingest.ProblemPrefix+"store-not-configured" {
		t.Errorf("without a store: %s", p.Type)
	}
}
