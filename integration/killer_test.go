//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace"
)

// killing serves a handler that does what the echo handler does. Payloads say how
// long it takes, and whether the worker that asks is killed then.
type killing struct {
	url string

	mu      sync.Mutex
	workers map[string]*process // by the path that they ask at
	runs    map[string]int      // conversation -> times that the handler was called
	deaths  chan string         // paths of workers that were killed
}

type killingPayload struct {
	Text   string `json:"text"`
	WorkMS int    `json:"work_ms"`
	Kill   bool   `json:"kill,omitempty"`
}

func newKilling(t testing.TB) *killing {
	k := &killing{workers: make(map[string]*process), runs: make(map[string]int), deaths: make(chan string, 100)}
	server := httptest.NewServer(k)
	t.Cleanup(server.Close)
	k.url = server.URL
	return k
}

func (k *killing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var turn struct {
		Task struct {
			Payload json.RawMessage `json:"payload"`
		} `json:"task"`
		Conversation string `json:"conversation"`
	}
	var payload killingPayload
	if err := json.NewDecoder(r.Body).Decode(&turn); err != nil || json.Unmarshal(turn.Task.Payload, &payload) != nil {
		http.Error(w, "not what was sent", http.StatusBadRequest)
		return
	}
	k.mu.Lock()
	k.runs[turn.Conversation]++
	worker := k.workers[r.URL.Path]
	k.mu.Unlock()
	work := time.NewTimer(time.Duration(payload.WorkMS) * time.Millisecond)
	defer work.Stop()
	select {
	case <-work.C:
	case <-r.Context().Done():
		return
	}
	if payload.Kill {
		worker.kill()
		k.deaths <- r.URL.Path
		return
	}
	said := string(turn.Task.Payload)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"messages": []map[string]string{{"role": "user", "content": said}, {"role": "assistant", "content": said}},
		"result":   turn.Task.Payload,
	})
}

// launch starts the n-th worker, which is known by its path.
func (k *killing) launch(p *pipeline, n int) *process {
	path := fmt.Sprintf("/worker%d", n)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.workers[path] = p.launch("worker", "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+k.url+path)
	return k.workers[path]
}

// One task kills every worker that runs it, among a thousand that do not. Whoever
// starts workers starts a new one each time. In the end the killer is a dead
// letter, and all the others are done, once each.
func TestKillerOfWorkersIsGivenUpAndNobodyElse(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		killsAfter           int // ms
		deaths, deathsAtMost int
	}{
		{"after 1.5 s", 1500, 3, 4}, // 4 if one died before the killer was marked
		{"at once", 20, 3, 5},
	} {
		t.Run(tt.name, func(t *testing.T) { killerAmongInnocents(t, tt.killsAfter, tt.deaths, tt.deathsAtMost) })
	}
}

func killerAmongInnocents(t *testing.T, killsAfter, deathsAtLeast, deathsAtMost int) {
	p := newPipeline(t, services{}, "MILLRACE_SLOTS=60")
	p.startIngest()
	k := newKilling(t)
	const conversations, long = 1000, 80
	sent := make(map[string]string) // conversation -> task
	send := func(conversation string, payload killingPayload) {
		body, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), settlePatience)
		defer cancel()
		id, err := submit(ctx, http.DefaultClient, *p.api.Load(), conversation, taskBody{
			Conversation: conversation, Type: "scenario", Priority: "normal", Payload: body,
		})
		if err != nil {
			t.Fatal(err)
		}
		sent[conversation] = id
	}
	for i := range conversations {
		work := 30
		if i < long {
			work = 2500 // runs beside the killer when it kills
		}
		send(fmt.Sprintf("innocent-%04d", i), killingPayload{Text: "an innocent", WorkMS: work})
		if i == long/2 {
			send("killer", killingPayload{Text: "the killer", WorkMS: killsAfter, Kill: true})
		}
	}

	workers := 2
	for n := range workers {
		k.launch(p, n)
	}
	deaths := 0
	began := time.Now()
	limit := time.NewTimer(2 * settlePatience)
	defer limit.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for done := 0; done < conversations+1; {
		select {
		case path := <-k.deaths:
			deaths++
			t.Logf("%s: %s was killed", time.Since(began).Round(100*time.Millisecond), path)
			k.launch(p, workers)
			workers++
		case <-tick.C:
			if n, err := p.count(t.Context(), "completions"); err == nil {
				done = n
			}
		case <-limit.C:
			t.Fatalf("%d of %d tasks are done, after %d deaths", done, conversations+1, deaths)
		}
	}
	t.Logf("it took %d deaths of workers and %s", deaths, time.Since(began).Round(100*time.Millisecond))
	if deaths < deathsAtLeast || deaths > deathsAtMost {
		t.Errorf("%d workers died, want %d to %d", deaths, deathsAtLeast, deathsAtMost)
	}

	eventually(t, settlePatience, "all is settled", func() error { return p.settled(t.Context()) })
	e, err := p.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(e.deadLetters) != 1 || !strings.HasPrefix(e.deadLetters[0], sent["killer"]+" "+millrace.ReasonKilledWorkers+": ") {
		t.Errorf("dead letters %v, want the killer alone", e.deadLetters)
	}
	results := make(map[string][]millrace.TaskResult)
	for _, r := range e.results {
		results[r.result.TaskID] = append(results[r.result.TaskID], r.result)
	}
	twice := 0
	for conversation, id := range sent {
		got := results[id]
		switch {
		case len(got) != 1:
			t.Errorf("%s has %d results", conversation, len(got))
		case conversation == "killer":
			if got[0].Status != millrace.StatusFailed || got[0].Attempts != 3 {
				t.Errorf("the killer ended %s after %d attempts, want failed after 3", got[0].Status, got[0].Attempts)
			}
		case got[0].Status != millrace.StatusCompleted || got[0].Attempts != 1:
			t.Errorf("%s ended %s after %d attempts: %s", conversation, got[0].Status, got[0].Attempts, got[0].Error)
		case len(e.messages[conversation]) != 2:
			t.Errorf("%s has %d messages, want 2", conversation, len(e.messages[conversation]))
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, runs := range k.runs {
		if runs > 1 {
			twice++
		}
	}
	t.Logf("%d of %d innocents ran again because their worker died", twice-1, conversations)
}
