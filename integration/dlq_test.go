//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// fixableHandler is a handler with a bug that refuses every turn until it is
// fixed. From then on it answers as the echo handler does, and notes each run.
type fixableHandler struct {
	url   string
	fixed atomic.Bool

	mu   sync.Mutex
	runs map[string]int // by task and redrive
}

func newFixableHandler(t *testing.T) *fixableHandler {
	h := &fixableHandler{runs: make(map[string]int)}
	server := httptest.NewServer(http.HandlerFunc(h.serve))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *fixableHandler) serve(w http.ResponseWriter, r *http.Request) {
	if !h.fixed.Load() {
		http.Error(w, "no such column", http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	h.runs[r.Header.Get("Idempotency-Key")]++
	h.mu.Unlock()
	var turn struct {
		Task struct {
			Payload json.RawMessage `json:"payload"`
		} `json:"task"`
	}
	if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"messages": []map[string]string{{"role": "user", "content": string(turn.Task.Payload)}}, "result": turn.Task.Payload,
	})
}

// call runs a command and returns its exit code and all that it said.
func (p *pipeline) call(args ...string) (code int, says string) {
	p.t.Helper()
	c := launch(p.t, "millrace "+strings.Join(args, " "), p.env, args...)
	code = c.wait(startPatience)
	return code, string(c.output())
}

// A handler with a bug makes dead letters. Once it is fixed, they are put back:
// each runs once, and in order within its conversation, though redrives run at the
// same time and one of them dies before it has recorded what it sent.
func TestDeadLettersArePutBack(t *testing.T) {
	h := newFixableHandler(t)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+h.url)
	p.startIngest()
	worker := p.start("worker")

	const each = 8
	want := make(map[string][]string) // payloads of a conversation, in order
	ids := make(map[string]bool)
	for i := range each {
		for _, conversation := range []string{"one", "two", "three"} {
			task := p.mustSubmit(t, conversation, "normal", fmt.Sprintf(`{"n":%d}`, i))
			want[conversation] = append(want[conversation], task.content)
			ids[task.id] = true
		}
	}
	// A bare record, whose id follows from where it lies, and one that can be no task.
	bare := &kgo.Record{Topic: p.topic("tasks.normal"), Partition: partitionOf("bare"), Key: []byte("bare"), Value: []byte(`"bare"`)}
	null := &kgo.Record{Topic: bare.Topic, Partition: bare.Partition, Key: bare.Key}
	if err := p.client.ProduceSync(t.Context(), bare, null).FirstErr(); err != nil {
		t.Fatal(err)
	}
	want["bare"] = []string{`"bare"`}
	total := 3*each + 2
	p.awaitCompletions(total)
	worker.terminate()

	letters := p.deadLetters(t)
	if len(letters) != total {
		t.Fatalf("%d dead letters, want %d", len(letters), total)
	}
	var nullID int64
	for _, l := range letters {
		switch {
		case l.Reason == millrace.ReasonNullValue:
			nullID = l.ID
		case l.Reason != millrace.ReasonPermanent || !strings.Contains(l.Detail, "no such column"):
			t.Errorf("dead letter %+v", l)
		case l.ConversationID == "bare":
			ids[l.TaskID] = true
		}
	}
	if page := p.deadLetters(t, "--conversation", "two", "--reason", millrace.ReasonPermanent, "--type", "scenario", "--since", "1h"); len(page) != each {
		t.Errorf("%d dead letters of conversation two, want %d", len(page), each)
	}
	if code, says := p.call("dlq", "show", fmt.Sprint(nullID)); code != 0 || !strings.Contains(says, "reason        null_value") || !strings.Contains(says, "(null)") {
		t.Errorf("code %d:\n%s", code, says)
	}
	if code, says := p.call("dlq", "redrive", "--everything", "--dry-run"); code != 1 || !strings.Contains(says, fmt.Sprintf("%d of %d dead letters would be redriven, 1 refused", total-1, total)) {
		t.Errorf("code %d:\n%s", code, says)
	}
	if n := len(p.deadLetters(t)); n != total {
		t.Errorf("after a dry run %d wait, want %d", n, total)
	}

	if code, says := p.call("dlq", "redrive", "--conversation", "two", "--limit", "2", "--dry-run"); code != 0 || !strings.Contains(says, "2 of 2 dead letters would be redriven") {
		t.Errorf("code %d:\n%s", code, says)
	}

	h.fixed.Store(true)
	// Two operators at once.
	both := []*process{
		launch(t, "redrive", p.env, "dlq", "redrive", "--reason", millrace.ReasonPermanent),
		launch(t, "redrive", p.env, "dlq", "redrive", "--reason", millrace.ReasonPermanent),
	}
	for _, r := range both {
		if code := r.wait(startPatience); code != 0 {
			t.Errorf("a redrive ended with code %d: %s", code, r.output())
		}
	}
	if n := p.sent(t); n != total-1 {
		t.Errorf("two redrives sent %d records, want %d", n, total-1)
	}
	// The process dies after Kafka has taken the records and before that is recorded.
	err := p.query(t.Context(), `UPDATE millrace.dead_letters SET redriven_at = NULL, redriven_as = NULL WHERE conversation_id IN ('one', 'bare')`,
		func(pgx.Rows) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if code, says := p.call("dlq", "redrive", "--everything"); code != 1 || !strings.Contains(says, fmt.Sprintf("%d of %d dead letters redriven, 1 refused", each+1, each+2)) ||
		!strings.Contains(says, "it can never be a task: null_value") {
		t.Errorf("code %d:\n%s", code, says)
	}
	if n := p.sent(t); n != total+each {
		t.Errorf("%d records have been sent again, want %d", n, total+each)
	}

	p.start("worker")
	p.awaitCompletions(total + total - 1)
	eventually(t, settlePatience, "the pipeline has settled", func() error { return p.settled(t.Context()) })
	p.checkRedriven(t, h, ids, want)

	// All have ended: another redrive has nothing to send.
	if code, says := p.call("dlq", "redrive", "--conversation", "one", "--all"); code != 0 || !strings.Contains(says, fmt.Sprintf("0 of %d dead letters redriven, %d had been before", each, each)) {
		t.Errorf("code %d:\n%s", code, says)
	}
	if code, says := p.call("dlq", "drop", "--everything"); code != 2 || !strings.Contains(says, "drop 1 dead letter: nobody is there to ask") {
		t.Errorf("code %d:\n%s", code, says)
	}
	if code, says := p.call("dlq", "drop", fmt.Sprint(nullID), "--yes"); code != 0 || says != "dropped 1 dead letter\n" {
		t.Errorf("code %d:\n%s", code, says)
	}
	if code, says := p.call("dlq", "drop", fmt.Sprint(nullID), "--yes"); code != 1 || !strings.Contains(says, fmt.Sprintf("no dead letter %d", nullID)) {
		t.Errorf("code %d:\n%s", code, says)
	}
	if waiting, all := p.deadLetters(t), p.deadLetters(t, "--all"); len(waiting) != 0 || len(all) != total-1 {
		t.Errorf("%d wait and %d are there, want 0 and %d", len(waiting), len(all), total-1)
	}
}

// checkRedriven checks that every task failed once and then was done once, in
// order.
func (p *pipeline) checkRedriven(t *testing.T, h *fixableHandler, ids map[string]bool, want map[string][]string) {
	t.Helper()
	e, err := p.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	results := make(map[string][]string)
	for _, r := range e.results {
		results[r.result.TaskID] = append(results[r.result.TaskID], r.id+" "+string(r.result.Status))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range ids {
		wanted := []string{id + ".result failed", id + ".result.1 completed"}
		if !slices.Equal(results[id], wanted) {
			t.Errorf("task %s has the results %v", id, results[id])
		}
		if n := h.runs[id+"/1"]; n != 1 {
			t.Errorf("redrive 1 of task %s ran %d times", id, n)
		}
	}
	if len(h.runs) != len(ids) {
		t.Errorf("the fixed handler ran %d tasks, want %d", len(h.runs), len(ids))
	}
	for conversation, payloads := range want {
		var said []string
		for _, m := range e.messages[conversation] {
			said = append(said, m.content)
		}
		if !slices.Equal(said, payloads) {
			t.Errorf("conversation %s has %v, want %v", conversation, said, payloads)
		}
	}
}

// deadLetters returns what dlq list says.
func (p *pipeline) deadLetters(t *testing.T, args ...string) []millrace.DeadLetterEntry {
	t.Helper()
	code, says := p.call(append([]string{"dlq", "list", "--json"}, args...)...)
	var page deadLetterPage
	if err := json.Unmarshal([]byte(says), &page); code != 0 || err != nil {
		t.Fatalf("code %d, %v:\n%s", code, err, says)
	}
	return page.DeadLetters
}

// sent returns how many redriven records are in the topics of tasks.
func (p *pipeline) sent(t *testing.T) (n int) {
	t.Helper()
	for _, priority := range priorities {
		records, err := p.read(t.Context(), p.topic("tasks."+priority))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if header(r, "ce_redrive") != "" {
				n++
			}
		}
	}
	return n
}

// An event that Kafka refuses, for want of its topic, is put back into the outbox
// and published once there is the topic.
func TestARefusedEventIsPutBack(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"events":[{"type":"said","topic":"events","data":{"a":1}}]}`))
	}))
	t.Cleanup(server.Close)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+server.URL)
	p.startIngest()
	p.start("worker")
	task := p.mustSubmit(t, "c", "high", `{}`)
	eventually(t, settlePatience, "the event is a dead letter", func() error {
		n, err := p.count(t.Context(), "dead_letters")
		if err == nil && n == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	if _, err := p.admin.CreateTopics(t.Context(), 1, 1, nil, p.topic("events")); err != nil {
		t.Fatal(err)
	}
	// One whose headers are none holds nothing up.
	err := p.query(t.Context(), `INSERT INTO millrace.dead_letters
		(task_id, redrive, tenant, type, reason, detail, attempts, topic, partition, "offset", headers, at)
		VALUES ('strange', 0, '', 'said', 'event_unpublishable', 'decode headers', 1, 'events', -1, -1, '{}', now())`, func(pgx.Rows) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--dry-run"}, nil} {
		if code, says := p.call(append([]string{"dlq", "redrive", "--task", "strange"}, args...)...); code != 1 || !strings.Contains(says, "strange  refused: decode headers") {
			t.Errorf("redrive %v: code %d:\n%s", args, code, says)
		}
	}
	if code, says := p.call("dlq", "redrive", "--task", task.id+".event0"); code != 0 || !strings.Contains(says, "the event put back into the outbox") {
		t.Errorf("code %d:\n%s", code, says)
	}
	eventually(t, settlePatience, "the event is published", func() error {
		records, err := p.read(t.Context(), p.topic("events"))
		if err != nil {
			return err
		}
		if len(records) != 1 || header(records[0], "ce_id") != task.id+".event0" || header(records[0], "ce_type") != "said" ||
			header(records[0], "content-type") != millrace.JSON || string(records[0].Key) != "c" || string(records[0].Value) != `{"a":1}` {
			return fmt.Errorf("the topic has %+v", records)
		}
		return nil
	})
}
