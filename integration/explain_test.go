//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"millrace"
	"millrace/consumer"
	"millrace/internal/app"
)

// explain runs millrace explain and returns what it found.
func (p *pipeline) explain(t testing.TB, id string) (w app.TaskWhereabouts) {
	t.Helper()
	c := launch(t, "explain", p.env, "explain", "--json", id)
	code := c.wait(startPatience)
	// What goes wrong is told behind the document.
	if err := json.NewDecoder(bytes.NewReader(c.output())).Decode(&w); err != nil {
		t.Fatalf("millrace explain (code %d): %v: %s", code, err, c.output())
	}
	if want := map[bool]int{true: 0, false: 1}[w.Found]; code != want {
		t.Errorf("exit code %d, want %d: %s", code, want, c.output())
	}
	return w
}

func TestExplain(t *testing.T) {
	release := make(chan struct{})
	handler := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		switch {
		case bytes.Contains(body, []byte("slow")):
			select {
			case <-release:
			case <-r.Context().Done():
				return
			}
		case bytes.Contains(body, []byte("busy")):
			w.Header().Set("Retry-After", "600")
			http.Error(w, "come back later", http.StatusServiceUnavailable)
			return
		case bytes.Contains(body, []byte("wrong")):
			http.Error(w, "never", http.StatusUnprocessableEntity)
			return
		}
		_, _ = io.WriteString(w, "{}")
	}))
	t.Cleanup(handler.Close)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+handler.URL, "MILLRACE_SLOTS=1")
	p.startIngest()
	worker := p.start("worker", "MILLRACE_WORKER_NAME=one")
	p.awaitShares("one")
	in := func(id string, state consumer.TaskState) app.TaskWhereabouts {
		t.Helper()
		var w app.TaskWhereabouts
		eventually(t, startPatience, fmt.Sprintf("task %s is %s", id, state), func() error {
			if w = p.explain(t, id); w.Explanation == nil || w.Explanation.State != state {
				return fmt.Errorf("%+v", w)
			}
			return nil
		})
		if w.Worker == nil || w.Worker.Name != "one" || w.Worker.Addr != worker.addr || w.Worker.Pool != "default" {
			t.Errorf("worker of %s: %+v", id, w.Worker)
		}
		return w
	}

	if w := p.explain(t, "nobody"); w.Found || w.Workers != 1 || w.Search == nil || len(w.Problems)+len(w.Silent) > 0 {
		t.Errorf("unknown: %+v", w)
	}

	busy := p.mustSubmit(t, "b", "normal", `{"text":"busy"}`)
	x := in(busy.id, consumer.WaitingForRetry).Explanation
	if x.Attempt != 1 || x.MaxAttempts != 5 || !strings.Contains(x.LastError, "come back later") || time.Until(x.RetryAt) < 8*time.Minute {
		t.Errorf("retrying: %+v", x)
	}

	done := p.mustSubmit(t, "d", "normal", `{"text":"quick"}`)
	p.result(t, done.id)
	if w := p.explain(t, done.id); !w.Found || w.Result == nil || w.Result.Status != millrace.StatusCompleted || w.Explanation != nil {
		t.Errorf("completed: %+v", w)
	}
	wrong := p.mustSubmit(t, "w", "normal", `{"text":"wrong"}`)
	p.result(t, wrong.id)
	if w := p.explain(t, wrong.id); w.Result == nil || w.Result.Status != millrace.StatusFailed || w.DeadLetter == nil || w.DeadLetter.Reason != millrace.ReasonPermanent {
		t.Errorf("failed: %+v", w)
	}

	first := p.mustSubmit(t, "s", "normal", `{"text":"slow"}`)
	second := p.mustSubmit(t, "s", "normal", `{"text":"second"}`)
	other := p.mustSubmit(t, "o", "normal", `{"text":"other"}`)
	if x := in(first.id, consumer.Running).Explanation; x.Attempt != 1 || time.Since(x.StartedAt) > time.Minute || x.TimesOutAt.Sub(x.StartedAt) != 10*time.Minute {
		t.Errorf("running: %+v", x)
	}
	if x := in(second.id, consumer.WaitingForConversation).Explanation; x.TasksBefore != 1 || x.RunningTask != first.id {
		t.Errorf("behind a running one: %+v", x)
	}
	if x := in(other.id, consumer.WaitingForSlot).Explanation; x.BusySlots != 1 || x.Slots != 1 {
		t.Errorf("without a slot: %+v", x)
	}
	text := launch(t, "explain", p.env, "explain", second.id)
	if code := text.wait(startPatience); code != 0 || !strings.Contains(string(text.output()), "waits for its conversation: 1 tasks come first, of which "+first.id+" runs") {
		t.Errorf("code %d: %s", code, text.output())
	}

	// A worker that stands still answers nothing and reads nothing.
	worker.signal(syscall.SIGSTOP)
	unread := p.mustSubmit(t, "u", "batch", `{"text":"quick"}`)
	w := p.explain(t, unread.id)
	worker.signal(syscall.SIGCONT)
	if r := w.Record; !w.Found || r == nil || r.Topic != p.topic("tasks.batch") || r.Partition != partitionOf("u") || r.Before != 0 ||
		len(r.Owners) != 1 || r.Owners[0].Name != "one" || len(w.Silent) != 1 {
		t.Errorf("not read: %+v, %+v", w, w.Record)
	}
	close(release)
	for _, id := range []string{first.id, second.id, other.id, unread.id} {
		p.result(t, id)
	}
	eventually(t, startPatience, "the worker's record of what is done is committed", func() error {
		if w := p.explain(t, second.id); w.Result == nil {
			return errors.New("no completion")
		}
		return nil
	})
}
