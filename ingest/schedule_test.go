package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace"
	"millrace/ingest"
)

// memoryScheduler is a Scheduler over a list.
type memoryScheduler struct {
	mu    sync.Mutex
	calls [][]millrace.ScheduledTask
	err   error
	once  bool // it fails once
}

func (m *memoryScheduler) Schedule(_ context.Context, tasks []millrace.ScheduledTask) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.err
	if m.once {
		m.err = nil
	}
	if err == nil {
		m.calls = append(m.calls, slices.Clone(tasks))
	}
	return err
}

func (m *memoryScheduler) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memoryScheduler) tasks() []millrace.ScheduledTask {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Concat(m.calls...)
}

func startScheduling(t *testing.T) (*fixture, *memoryScheduler) {
	s := &memoryScheduler{}
	return start(t, func(c *ingest.Config) { c.Scheduler = s }), s
}

func taskAt(runAt string) string {
	return `{"conversation":"c","type":"t","payload":1,"priority":"high","tenant":"acme","run_at":` + runAt + `}`
}

func inAnHour() time.Time { return time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond) }

func quoted(at time.Time) string { return `"` + at.Format(time.RFC3339Nano) + `"` }

func TestTaskOfTheFutureIsHeldBack(t *testing.T) {
	f, s := startScheduling(t)
	runAt := inAnHour()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	got := f.mustSubmit(taskAt(quoted(runAt.In(time.FixedZone("", 5400)))), "Traceparent", parent)
	held := s.tasks()
	if len(held) != 1 || f.ends() != 0 {
		t.Fatalf("%d tasks are held back and %d sent, want 1 and none", len(held), f.ends())
	}
	task := held[0].Task
	if !held[0].RunAt.Equal(runAt) || task.ID != got.TaskID || task.Conversation != "c" || task.Priority != millrace.High ||
		task.Tenant != "acme" || task.Source != "urn:millrace:ingest" || task.TraceParent != parent || string(task.Payload) != "1" {
		t.Errorf("held back %+v", held[0])
	}
	if got.Status != millrace.StatusQueued || !got.RunAt.Equal(runAt) || got.Priority != millrace.High {
		t.Errorf("answer %+v", got)
	}
	if n, m := f.metric("millrace_ingest_scheduled_total", "priority", "high"), f.metric("millrace_ingest_accepted_total"); n != 1 || m != 0 {
		t.Errorf("counted %v scheduled and %v accepted", n, m)
	}
}

func TestTimeThatHasPassedMeansNow(t *testing.T) {
	f, s := startScheduling(t)
	for _, runAt := range []string{`null`, `"2001-01-01T00:00:00Z"`, quoted(time.Now())} {
		if got := f.mustSubmit(taskAt(runAt)); !got.RunAt.IsZero() {
			t.Errorf("%s: held back until %s", runAt, got.RunAt)
		}
	}
	if len(s.tasks()) != 0 || f.ends() != 3 {
		t.Errorf("%d tasks are held back and %d sent, want none and 3", len(s.tasks()), f.ends())
	}
}

func TestBadTimesAreRefused(t *testing.T) {
	f, s := startScheduling(t)
	runAt := inAnHour()
	for body, where := range map[string]string{
		taskAt(`"tomorrow"`):                  "want an RFC 3339 time",
		taskAt(`"2027-01-01"`):                "want an RFC 3339 time",
		taskAt(`1800000000`):                  "want a string, got a number",
		taskAt(`""`):                          "want an RFC 3339 time",
		taskAt(`"9999-12-31T23:59:59Z"`):      "is more than 366 days from now",
		taskAt(`"9999-12-31T23:59:59-12:00"`): "want an RFC 3339 time",
		taskAt(quoted(time.Now().Add(ingest.MaxRunAhead + time.Minute))):                           "is more than 366 days from now; at the latest 20",
		strings.Replace(taskAt(quoted(runAt)), `"type"`, `"deadline":`+quoted(runAt)+`,"type"`, 1): "deadline is not after run_at",
		strings.Replace(taskAt(quoted(runAt)), `"type"`, `"run_at":`+quoted(runAt)+`,"type"`, 1):   "given twice",
	} {
		r := f.submit(body)
		if r.status != http.StatusUnprocessableEntity {
			t.Errorf("%s: status %d: %s", body, r.status, r.body)
			continue
		}
		p := r.problem(t)
		if p.Type != "urn:millrace:problem:invalid-field" || !strings.Contains(p.Detail, where) {
			t.Errorf("%s: %s: %s, want %q", body, p.Type, p.Detail, where)
		}
	}
	f.mustSubmit(taskAt(quoted(time.Now().Add(ingest.MaxRunAhead - time.Minute))))
	if len(s.tasks()) != 1 || f.ends() != 0 {
		t.Errorf("%d tasks are held back and %d sent", len(s.tasks()), f.ends())
	}
}

func TestNothingIsHeldBackWithoutAStore(t *testing.T) {
	f := start(t, nil)
	r := f.submit(taskAt(quoted(inAnHour())))
	if p := r.problem(t); r.status != 503 || p.Type != "urn:millrace:problem:store-not-configured" || !strings.Contains(p.Detail, "run_at") || !strings.Contains(p.Detail, "MILLRACE_POSTGRES_URL") {
		t.Errorf("status %d: %+v", r.status, p)
	}

	f, s := startScheduling(t)
	s.fail(millrace.UnavailableDependency(millrace.Postgres, errors.New("out")))
	r = f.submit(taskAt(quoted(inAnHour())))
	if p := r.problem(t); r.status != 503 || p.Type != "urn:millrace:problem:schedule-unavailable" || r.header.Get("Retry-After") == "" || strings.Contains(p.Detail, "out") {
		t.Errorf("status %d: %+v", r.status, p)
	}
	s.fail(errors.New("refused"))
	if r = f.submit(taskAt(quoted(inAnHour()))); r.status != 500 {
		t.Errorf("status %d: %s", r.status, r.body)
	}
	f.mustSubmit(`{"conversation":"c","type":"t","payload":1}`) // needs no store
	if n := f.metric("millrace_ingest_scheduled_total"); n != 0 {
		t.Errorf("%v tasks count as scheduled", n)
	}
}

// How far the workers are behind now says nothing about later.
func TestLagDoesNotRefuseWhatRunsLater(t *testing.T) {
	s := &memoryScheduler{}
	lag := &fakeLag{asked: make(chan struct{})}
	f := start(t, func(c *ingest.Config) {
		c.Scheduler, c.Lag, c.MaxLag, c.LagInterval = s, lag, map[millrace.Priority]int64{millrace.High: 10}, time.Millisecond
	})
	lag.set(nil, map[millrace.Priority]ingest.LagSample{millrace.High: {Records: 100}})
	if r := f.submit(taskAt(`null`)); r.status != http.StatusTooManyRequests {
		t.Fatalf("status %d of a task that runs now, want 429", r.status)
	}
	f.mustSubmit(taskAt(quoted(inAnHour())))
	if len(s.tasks()) != 1 {
		t.Errorf("%d tasks are held back, want 1", len(s.tasks()))
	}
}

func TestBatchHoldsItsLinesBackTogether(t *testing.T) {
	f, s := startScheduling(t)
	runAt := inAnHour()
	var body strings.Builder
	for i := range 1200 {
		fmt.Fprintf(&body, `{"conversation":"c%d","type":"t","payload":%d,"run_at":%s}`+"\n", i%3, i, quoted(runAt))
		if i%100 == 0 {
			body.WriteString(`{"conversation":"now","type":"t","payload":0}` + "\n" + `{"conversation":"bad","type":"t","payload":0,"run_at":"x"}` + "\n")
		}
	}
	results, r := f.batch(body.String())
	if r.status != http.StatusOK || len(results) != 1224 {
		t.Fatalf("status %d, %d results", r.status, len(results))
	}
	statuses := make(map[int]int)
	for _, one := range results {
		statuses[one.Status]++
		if one.RunAt.Equal(runAt) != (one.ConversationID != "now" && one.Status == 202) {
			t.Errorf("line %d of %s: held back until %s", one.Line, one.ConversationID, one.RunAt)
		}
	}
	if statuses[202] != 1212 || statuses[422] != 12 || f.ends() != 12 || len(s.calls) > 3 {
		t.Errorf("statuses %v, %d sent, stored in %d calls", statuses, f.ends(), len(s.calls))
	}
	for i, held := range s.tasks() {
		if string(held.Task.Payload) != fmt.Sprint(i) {
			t.Fatalf("task %d is %s: not in the order of the lines", i, held.Task.Payload)
		}
	}
	if n := f.metric("millrace_ingest_scheduled_total"); n != 1200 {
		t.Errorf("%v tasks count as scheduled", n)
	}
}

func TestLineThatCannotBeHeldBackHoldsItsConversation(t *testing.T) {
	f, s := startScheduling(t)
	s.once = true
	s.fail(millrace.UnavailableDependency(millrace.Postgres, errors.New("out")))
	var body strings.Builder
	for range 500 {
		body.WriteString(taskAt(quoted(inAnHour())) + "\n")
	}
	body.WriteString(taskAt(quoted(inAnHour())) + "\n" + `{"conversation":"other","type":"t","payload":1}` + "\n")
	results, _ := f.batch(body.String())
	for _, one := range results[:501] {
		if one.Status != 503 || one.Error == nil || one.Error.Type != "urn:millrace:problem:schedule-unavailable" {
			t.Fatalf("line %d: %+v", one.Line, one)
		}
	}
	if last := results[501]; last.Status != 202 {
		b, _ := json.Marshal(last)
		t.Errorf("the line of another conversation: %s", b)
	}
	if len(s.tasks()) > 0 {
		t.Error("a later line of the conversation was held back: it is ahead of those that are sent again")
	}
}

func TestRepeatThatCountsFromTheMomentOfSendingIsOne(t *testing.T) {
	s, prints := &memoryScheduler{}, &memory{}
	f := start(t, func(c *ingest.Config) { c.Scheduler, c.Fingerprints = s, prints })
	first := f.mustSubmit(taskAt(quoted(inAnHour())), "Idempotency-Key", "k")
	for _, runAt := range []string{quoted(inAnHour().Add(time.Minute)), `null`, `"2001-01-01T00:00:00Z"`} {
		if again := f.mustSubmit(taskAt(runAt), "Idempotency-Key", "k"); again.TaskID != first.TaskID {
			t.Errorf("%s: another task, %s", runAt, again.TaskID)
		}
	}
	if r := f.submit(strings.Replace(taskAt(quoted(inAnHour())), `"payload":1`, `"payload":2`, 1), "Idempotency-Key", "k"); r.status != 422 {
		t.Errorf("another task under the key: status %d", r.status)
	}
}
