//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/consumer"
)

// submitBusy sends a task of conversation c with a busy policy.
func (p *pipeline) submitBusy(t *testing.T, onBusy, payload string) string {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: oneShot}
	id, err := submit(t.Context(), client, *p.api.Load(), "",
		taskBody{Conversation: "c", Type: "scenario", OnBusy: onBusy, Payload: json.RawMessage(payload)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestBusyPolicies(t *testing.T) { busyPolicies(t, services{}) }

func busyPolicies(t *testing.T, s services) {
	h := newWaitingHandler(t)
	p := newPipeline(t, s, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+h.url)
	p.startIngest()
	p.start("worker")

	running := p.submitBusy(t, "", `{"wait":true}`)
	eventually(t, settlePatience, "the first task runs", func() error { return h.holds(&h.ran, running) })

	rejected := p.submitBusy(t, "reject", `{}`)
	if r := p.result(t, rejected); r.Status != millrace.StatusFailed || !strings.HasPrefix(r.Error, "busy: ") || r.Attempts != 0 {
		t.Errorf("the rejecting task is %s after %d attempts: %s", r.Status, r.Attempts, r.Error)
	}
	if h.holds(&h.canceled, running) == nil {
		t.Error("the rejecting task has ended the running one")
	}
	queued := p.submitBusy(t, "enqueue", `{}`)
	if h.holds(&h.ran, queued) == nil {
		t.Error("the queued task runs beside another of its conversation")
	}
	interrupting := p.submitBusy(t, "interrupt", `{}`)
	if r := p.result(t, running); r.Status != millrace.StatusCancelled || !strings.HasPrefix(r.Error, "interrupted") {
		t.Errorf("the interrupted task is %s: %s", r.Status, r.Error)
	}
	for _, id := range []string{queued, interrupting} {
		if r := p.result(t, id); r.Status != millrace.StatusCompleted {
			t.Errorf("%s is %s: %s", id, r.Status, r.Error)
		}
	}
	if err := h.holds(&h.canceled, running); err != nil {
		t.Errorf("the interrupted handler's context did not end: %v", err)
	}
	var order []string
	if err := p.query(t.Context(), "SELECT task_id FROM millrace.completions ORDER BY finished_at", func(rows pgx.Rows) error {
		order = append(order, "")
		return rows.Scan(&order[len(order)-1])
	}); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(order), fmt.Sprint([]string{rejected, running, queued, interrupting}); got != want {
		t.Errorf("ended in the order %s, want %s", got, want)
	}
	if n, err := p.count(t.Context(), "dead_letters"); err != nil || n != 0 {
		t.Error(errors.Join(err, fmt.Errorf("%d dead letters", n)))
	}
	events := p.resultEvents(t, order...)
	for id, want := range map[string]string{rejected: "task.failed", running: "task.cancelled", queued: "task.completed", interrupting: "task.completed"} {
		if fmt.Sprint(events[id]) != "["+want+"]" {
			t.Errorf("result events of %s: %v, want %s", id, events[id], want)
		}
	}
	// Those that are coalesced behind a running one get one turn, each its result.
	running = p.submitBusy(t, "coalesce", `{"wait":true}`)
	eventually(t, settlePatience, "the first of the burst runs", func() error { return h.holds(&h.ran, running) })
	burst := make([]string, 4)
	for i := range burst {
		burst[i] = p.submitBusy(t, "coalesce", `{}`)
	}
	eventually(t, settlePatience, "the worker has read the burst", func() error {
		// The last of them comes last: they are in one partition.
		if w := p.explain(t, burst[3]); w.Explanation == nil || w.Explanation.State != consumer.WaitingForConversation {
			return fmt.Errorf("it is %+v", w)
		}
		return nil
	})
	close(h.released)
	for i, id := range append([]string{running}, burst...) {
		if r := p.result(t, id); r.Status != millrace.StatusCompleted || r.Attempts != 1 {
			t.Errorf("%s is %s after %d attempts: %s", id, r.Status, r.Attempts, r.Error)
		}
		if i > 1 && h.holds(&h.ran, id) == nil {
			t.Errorf("%s had a turn of its own", id)
		}
	}
	h.mu.Lock()
	got := h.with[burst[0]]
	h.mu.Unlock()
	if fmt.Sprint(got) != fmt.Sprint(burst[1:]) {
		t.Errorf("the turn of %s had %v with it, want %v", burst[0], got, burst[1:])
	}
	events = p.resultEvents(t, burst...)
	for _, id := range burst {
		if fmt.Sprint(events[id]) != "[task.completed]" {
			t.Errorf("result events of %s: %v", id, events[id])
		}
	}
	var transactions, steps int
	if err := p.query(t.Context(), "SELECT count(DISTINCT commit_token), (SELECT count(*) FROM millrace.steps) FROM millrace.completions WHERE task_id = ANY ($1)",
		func(rows pgx.Rows) error { return rows.Scan(&transactions, &steps) }, burst); err != nil {
		t.Fatal(err)
	}
	if transactions != 1 || steps != 0 {
		t.Errorf("the burst was completed in %d transactions and left %d rows in the journal", transactions, steps)
	}
	// Idle again: a task that would be rejected runs.
	if r := p.result(t, p.submitBusy(t, "reject", `{}`)); r.Status != millrace.StatusCompleted {
		t.Errorf("a rejecting task of an idle conversation is %s: %s", r.Status, r.Error)
	}
}

// A worker is killed while it answers several tasks at once. Its heir answers the
// same ones, although another has come.
func TestCoalescedTurnOfAKilledWorkerIsFormedAgain(t *testing.T) {
	h := newWaitingHandler(t)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+h.url)
	p.startIngest()
	victim := p.start("worker")

	first := p.submitBusy(t, "coalesce", `{"wait":true}`)
	eventually(t, settlePatience, "the first task runs", func() error { return h.holds(&h.ran, first) })
	burst := []string{p.submitBusy(t, "coalesce", `{"wait":true}`), p.submitBusy(t, "coalesce", `{}`), p.submitBusy(t, "coalesce", `{}`)}
	eventually(t, settlePatience, "the worker has read the burst", func() error {
		if w := p.explain(t, burst[2]); w.Explanation == nil || w.Explanation.State != consumer.WaitingForConversation {
			return fmt.Errorf("it is %+v", w)
		}
		return nil
	})
	if got := p.cancel(t, first); got != http.StatusOK {
		t.Fatalf("cancel of the first task: %d", got)
	}
	eventually(t, settlePatience, "the burst has its turn", func() error { return h.holds(&h.ran, burst[0]) })
	late := p.submitBusy(t, "coalesce", `{}`)
	victim.kill()
	close(h.released)
	p.start("worker")
	for _, id := range append(burst, late) {
		if r := p.result(t, id); r.Status != millrace.StatusCompleted {
			t.Errorf("%s is %s: %s", id, r.Status, r.Error)
		}
	}
	h.mu.Lock()
	got := h.with
	h.mu.Unlock()
	want := map[string][]string{burst[0]: {burst[1], burst[2], burst[1], burst[2]}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("turns had %v with them, want %v", got, want)
	}
	var transactions int
	if err := p.query(t.Context(), "SELECT count(DISTINCT commit_token) FROM millrace.completions WHERE task_id = ANY ($1)",
		func(rows pgx.Rows) error { return rows.Scan(&transactions) }, burst); err != nil {
		t.Fatal(err)
	}
	if transactions != 1 {
		t.Errorf("the burst was completed in %d transactions", transactions)
	}
}
