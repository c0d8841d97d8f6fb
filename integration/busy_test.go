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

func TestBusyPolicies(t *testing.T) {
	h := newWaitingHandler(t)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+h.url)
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
	// Idle again: a task that would be rejected runs.
	if r := p.result(t, p.submitBusy(t, "reject", `{}`)); r.Status != millrace.StatusCompleted {
		t.Errorf("a rejecting task of an idle conversation is %s: %s", r.Status, r.Error)
	}
}
