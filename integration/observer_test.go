//go:build integration

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// observer serves a handler that does what the echo handler does, takes its
// time, and writes down who called it for what.
type observer struct {
	url string
	// work is how long a turn takes.
	work time.Duration

	mu    sync.Mutex
	calls []*call
	// gate holds turns up until it is closed; nil: no turn.
	gate   chan struct{}
	except string // worker whose turns it lets through
}

// call is one turn as the handler sees it.
type call struct {
	worker, task, conversation string
	started                    time.Time
	ended                      time.Time // zero while it runs
}

func observe(t testing.TB, work time.Duration) *observer {
	o := &observer{work: work}
	server := httptest.NewServer(o)
	t.Cleanup(server.Close)
	o.url = server.URL
	return o
}

// worker returns the settings of a worker that is known by a name.
func (o *observer) worker(name string) []string {
	return []string{"MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL=" + o.url + "/" + name, "MILLRACE_WORKER_NAME=" + name}
}

func (o *observer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var turn struct {
		Conversation string `json:"conversation"`
		Task         struct {
			ID      string          `json:"id"`
			Payload json.RawMessage `json:"payload"`
		} `json:"task"`
	}
	if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c := &call{worker: strings.TrimPrefix(r.URL.Path, "/"), task: turn.Task.ID, conversation: turn.Conversation, started: time.Now()}
	o.mu.Lock()
	o.calls = append(o.calls, c)
	gate := o.gate
	if c.worker == o.except {
		gate = nil
	}
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		c.ended = time.Now()
	}()
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	work := time.NewTimer(o.work)
	defer work.Stop()
	select {
	case <-work.C:
	case <-r.Context().Done():
		return
	}
	said := string(turn.Task.Payload)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"messages": []map[string]string{{"role": "user", "content": said}, {"role": "assistant", "content": said}},
		"result":   turn.Task.Payload,
	})
}

// shut makes the turns that start from now on wait, but those of one worker.
func (o *observer) shut(except string) (open func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	gate := make(chan struct{})
	o.gate, o.except = gate, except
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.gate = nil
		close(gate)
	})
}

// seen returns copies of the calls so far, in the order of their starts.
func (o *observer) seen() []call {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]call, len(o.calls))
	for i, c := range o.calls {
		out[i] = *c
	}
	slices.SortStableFunc(out, func(a, b call) int { return a.started.Compare(b.started) })
	return out
}

// runningAt returns the turns that run at a worker now.
func (o *observer) runningAt(worker string) (running []call) {
	for _, c := range o.seen() {
		if c.worker == worker && c.ended.IsZero() {
			running = append(running, c)
		}
	}
	return running
}

// startedElsewhere returns when each task was first started after a moment, by
// any worker but one.
func (o *observer) startedElsewhere(worker string, after time.Time) map[string]time.Time {
	starts := make(map[string]time.Time)
	for _, c := range o.seen() {
		if _, known := starts[c.task]; !known && c.worker != worker && c.started.After(after) {
			starts[c.task] = c.started
		}
	}
	return starts
}

// counted returns the sum of a process's metric over its labels that begin with
// one of the given ones.
func (p *process) counted(name string, labels ...string) (sum float64, err error) {
	resp, err := http.Get(p.url() + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		series, value, found := strings.Cut(line, " ")
		bare, _, _ := strings.Cut(series, "{")
		if !found || bare != name || !slices.ContainsFunc(labels, func(l string) bool { return strings.Contains(series, l) }) && len(labels) > 0 {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", line, err)
		}
		sum += v
	}
	return sum, lines.Err()
}
