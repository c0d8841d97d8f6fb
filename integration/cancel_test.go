//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// waitingHandler holds the turns whose payload says so, until they are canceled
// or released. It notes which tasks ran, and which were canceled while they did.
type waitingHandler struct {
	url      string
	released chan struct{}

	mu            sync.Mutex
	ran, canceled []string
	with          map[string][]string // by task: those that its turn was to answer as well
}

func newWaitingHandler(t *testing.T) *waitingHandler {
	h := &waitingHandler{released: make(chan struct{}), with: make(map[string][]string)}
	server := httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *waitingHandler) serve(w http.ResponseWriter, r *http.Request) {
	var turn struct {
		Task struct {
			ID      string `json:"id"`
			Payload struct {
				Wait bool `json:"wait"`
			} `json:"payload"`
		} `json:"task"`
		Coalesced []struct {
			ID string `json:"id"`
		} `json:"coalesced"`
	}
	if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, other := range turn.Coalesced {
		h.mu.Lock()
		h.with[turn.Task.ID] = append(h.with[turn.Task.ID], other.ID)
		h.mu.Unlock()
	}
	h.note(&h.ran, turn.Task.ID)
	if turn.Task.Payload.Wait {
		select {
		case <-h.released:
		case <-r.Context().Done():
			h.note(&h.canceled, turn.Task.ID)
			return
		}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"messages": []map[string]string{{"role": "user", "content": turn.Task.ID}}})
}

func (h *waitingHandler) note(list *[]string, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*list = append(*list, id)
}

func (h *waitingHandler) holds(list *[]string, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.Contains(*list, id) {
		return nil
	}
	return fmt.Errorf("%v", *list)
}

// cancel asks for a task's cancel and returns the status of the answer.
func (p *pipeline) cancel(t *testing.T, id string) int {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: oneShot}
	resp, err := client.Post(*p.api.Load()+"/v1/tasks/"+id+":cancel", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// resultEvents returns the types of the result events in Kafka, by task, once all
// the given tasks have one.
func (p *pipeline) resultEvents(t *testing.T, tasks ...string) map[string][]string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...), kgo.ConsumeTopics(p.topic("results")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	found := make(map[string][]string)
	eventually(t, settlePatience, "every task has its result event", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			var result millrace.TaskResult
			if err := json.Unmarshal(r.Value, &result); err != nil {
				t.Errorf("result event %s: %v", r.Value, err)
			}
			for _, h := range r.Headers {
				if h.Key == "ce_type" {
					found[result.TaskID] = append(found[result.TaskID], string(h.Value))
				}
			}
		})
		for _, id := range tasks {
			if found[id] == nil {
				return fmt.Errorf("%s has none", id)
			}
		}
		return nil
	})
	return found
}

func TestTasksAreCancelled(t *testing.T) { tasksAreCancelled(t, services{}) }

func tasksAreCancelled(t *testing.T, s services) {
	h := newWaitingHandler(t)
	p := newPipeline(t, s, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+h.url)
	p.startIngest()

	// Cancelled before any worker is there, and by one's own id before it is sent.
	backlog := p.mustSubmit(t, "backlog", "normal", `{}`)
	eventually(t, settlePatience, "the task is known", func() error {
		return get(*p.api.Load()+"/v1/tasks/"+backlog.id, http.StatusOK, nil)
	})
	if got := p.cancel(t, backlog.id); got != http.StatusOK {
		t.Errorf("cancel of a queued task: %d", got)
	}
	const overtaken = "overtaken-by-its-cancel"
	if got := p.cancel(t, overtaken); got != http.StatusAccepted {
		t.Errorf("cancel of a task that has not come: %d", got)
	}
	p.start("worker")
	record := &kgo.Record{
		Topic: p.topic("tasks.normal"), Partition: partitionOf("overtaken"), Key: []byte("overtaken"), Value: []byte(`{}`),
		Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(overtaken)}, {Key: "content-type", Value: []byte("application/json")}},
	}
	if err := p.client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}

	// One runs, one waits behind it.
	running := p.mustSubmit(t, "c", "normal", `{"wait":true}`)
	waiting := p.mustSubmit(t, "c", "normal", `{}`)
	last := p.mustSubmit(t, "c", "normal", `{}`)
	eventually(t, settlePatience, "the first task runs", func() error { return h.holds(&h.ran, running.id) })
	eventually(t, settlePatience, "the second task is known", func() error {
		return get(*p.api.Load()+"/v1/tasks/"+waiting.id, http.StatusOK, nil)
	})
	if got := p.cancel(t, waiting.id); got != http.StatusOK {
		t.Errorf("cancel of a waiting task: %d", got)
	}
	if got := p.cancel(t, running.id); got != http.StatusOK {
		t.Errorf("cancel of a running task: %d", got)
	}
	eventually(t, 10*time.Second, "the handler's context ends", func() error { return h.holds(&h.canceled, running.id) })
	if r := p.result(t, last.id); r.Status != millrace.StatusCompleted {
		t.Errorf("the task behind the cancelled ones is %s: %s", r.Status, r.Error)
	}
	if got := p.cancel(t, last.id); got != http.StatusConflict {
		t.Errorf("cancel of a finished task: %d", got)
	}

	eventually(t, settlePatience, "the workers have read and committed all", func() error {
		lag, err := p.lag(t.Context())
		if err == nil && lag > 0 {
			err = fmt.Errorf("%d records to go", lag)
		}
		return err
	})
	cancelled := []string{backlog.id, overtaken, waiting.id, running.id}
	events := p.resultEvents(t, append(cancelled, last.id)...)
	for _, id := range cancelled {
		if r := p.result(t, id); r.Status != millrace.StatusCancelled {
			t.Errorf("%s is %s", id, r.Status)
		}
		if !slices.Equal(events[id], []string{"task.cancelled"}) {
			t.Errorf("result events of %s: %v", id, events[id])
		}
		if id != running.id && h.holds(&h.ran, id) == nil {
			t.Errorf("%s ran", id)
		}
	}
	var messages []string
	if err := p.query(t.Context(), "SELECT task_id FROM millrace.messages", func(rows pgx.Rows) error {
		messages = append(messages, "")
		return rows.Scan(&messages[len(messages)-1])
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(messages, []string{last.id}) {
		t.Errorf("messages of %v, want of %s alone", messages, last.id)
	}
	if n, err := p.count(t.Context(), "dead_letters"); err != nil || n != 0 {
		t.Error(errors.Join(err, fmt.Errorf("%d dead letters", n)))
	}
}
