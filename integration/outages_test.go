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
	"sync"
	"testing"
	"time"

	"millrace/internal/testenv"
	"millrace/llm/sim"
)

// PostgreSQL, and then Redis, is gone for ten seconds under load: the worker says
// that it is not ready, stays alive, starts no turn, and goes on by itself.
func TestPostgresOutUnderLoad(t *testing.T) {
	server := testenv.StartPostgres(t)
	outUnderLoad(t, services{postgres: server.URL}, server, "postgres")
}

func TestRedisOutUnderLoad(t *testing.T) {
	server := testenv.StartRedis(t)
	outUnderLoad(t, services{redis: server.URL}, server, "redis")
}

func outUnderLoad(t *testing.T, s services, server *testenv.Server, dependency string) {
	p := newPipeline(t, s, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	workers := p.startWorkers(2)
	p.startIngest()
	const conversations, turns = 100, 6
	running := p.send(load{conversations: conversations, turns: turns, rate: 150})
	p.awaitCompletions(conversations * turns / 3)
	var watches []*healthWatch
	for _, w := range workers {
		watches = append(watches, w.watchHealth())
	}
	stopped := time.Now()
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pass(t, 10*time.Second-time.Since(stopped))
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	e := p.check(t, running.wait())
	t.Logf("all done %s after %s was back", time.Since(back).Round(time.Millisecond), dependency)
	e.mustHaveRunOnce(t)
	if len(e.deadLetters) > 0 {
		t.Errorf("dead letters: %v", e.deadLetters)
	}
	for i, w := range workers {
		w.awaitReadyz()
		watches[i].judge(stopped, back)
		w.says(`"dependency":"`+dependency+`".*"message":"a dependency is out"`, time.Second)
		w.says(`"dependency":"`+dependency+`","out_for":.*"message":"a dependency answers again"`, time.Second)
	}
}

// healthWatch notes what a process says of its health.
type healthWatch struct {
	p       *process
	stop    chan struct{}
	wg      sync.WaitGroup
	changes []change // of readiness
	dead    []string
}

type change struct {
	at    time.Time
	ready bool
	why   string
}

func (p *process) watchHealth() *healthWatch {
	w := &healthWatch{p: p, stop: make(chan struct{})}
	w.wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := get(p.url()+"/livez", http.StatusOK, nil); err != nil {
				w.dead = append(w.dead, err.Error())
			}
			err := get(p.url()+"/readyz", http.StatusOK, nil)
			if n := len(w.changes); n == 0 || w.changes[n-1].ready != (err == nil) {
				w.changes = append(w.changes, change{time.Now(), err == nil, fmt.Sprint(err)})
			}
			select {
			case <-w.stop:
				return
			case <-p.t.Context().Done():
				return
			case <-tick.C:
			}
		}
	})
	return w
}

// judge ends the watch and fails the test unless the process was alive all along,
// unready within 5 seconds of the outage and until its end, and ready within 5
// seconds after it.
func (w *healthWatch) judge(out, back time.Time) {
	t := w.p.t
	t.Helper()
	close(w.stop)
	w.wg.Wait()
	for _, err := range w.dead {
		t.Errorf("%s was not alive: %s", w.p.name, err)
	}
	var unready, ready time.Time
	for _, c := range w.changes {
		t.Logf("%s: %6s since the outage began, ready %v: %s", w.p.name, c.at.Sub(out).Round(10*time.Millisecond), c.ready, c.why)
		switch {
		case !c.ready && unready.IsZero():
			unready = c.at
		case c.ready && !unready.IsZero():
			ready = c.at
		}
	}
	if unready.IsZero() || unready.Before(out) || unready.Sub(out) > 5*time.Second {
		t.Errorf("%s was unready %s after the outage began", w.p.name, unready.Sub(out))
	}
	if ready.IsZero() || ready.Sub(back) > 5*time.Second || len(w.changes) != 3 {
		t.Errorf("%s was ready %s after the outage ended, with %d changes", w.p.name, ready.Sub(back), len(w.changes))
	}
}

// A provider answers 500 to everything for ten seconds. Its agent, a program of
// its own behind the LLM proxy, can only say that it has failed. Tasks of another
// type go on, and no task pays for the outage with an attempt.
func TestProviderOutHoldsOnlyTheTasksThatCallIt(t *testing.T) {
	simulator, err := sim.New(sim.Config{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	provider := httptest.NewServer(simulator.Handler())
	t.Cleanup(provider.Close)
	agent, proxyIs := agentOfOneType(t)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+agent, "MILLRACE_SLOTS=8", "MILLRACE_MAX_ATTEMPTS=2",
		"MILLRACE_LLM_SIM_BASE_URL="+provider.URL+"/v1", "MILLRACE_LLM_SIM_API_KEY=k", "MILLRACE_LLM_MODEL=sim/m", "MILLRACE_LLM_PROXY_ADDR=127.0.0.1:0")
	worker := p.startWorkers(1)[0]
	proxyIs("http://" + string(worker.says(`"addr":"([^"]+)".*"message":"LLM proxy listens"`, time.Second)[1]))
	p.startIngest()

	sent := make(map[string][]sentTask)
	client := &http.Client{Timeout: 30 * time.Second, Transport: oneShot}
	send := func(kind string, n int) {
		t.Helper()
		for i := range n {
			task := sentTask{
				conversation: fmt.Sprintf("%s-%d", kind, i%10), priority: "normal",
				content: fmt.Sprintf(`{"text":"%s %d"}`, kind, i), acceptedAt: time.Now(),
			}
			task.id, err = submit(t.Context(), client, *p.api.Load(), "", taskBody{
				Conversation: task.conversation, Type: kind, Priority: task.priority, Payload: json.RawMessage(task.content),
			})
			if err != nil {
				t.Fatal(err)
			}
			sent[task.conversation] = append(sent[task.conversation], task)
		}
	}
	if err := simulator.SetFaults(sim.Faults{ServerError: 1}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	send("agent", 40)
	worker.says(`"dependency":"llm/sim","type":"agent".*"message":"a dependency is out`, 20*time.Second)
	send("plain", 100)
	p.awaitCompletions(100)
	t.Logf("100 tasks that call nobody were done %s after the provider had failed", time.Since(began).Round(time.Millisecond))
	calls := simulator.Ledger(0)
	pass(t, 10*time.Second-time.Since(began))
	probes := len(simulator.Ledger(0)) - len(calls)
	t.Logf("%d calls in the rest of the 10 s", probes)
	if n, err := p.count(t.Context(), "completions"); err != nil || n != 100 {
		t.Errorf("%d tasks are complete while the provider is out, %v", n, err)
	}
	if err := get(worker.url()+"/readyz", http.StatusOK, nil); err != nil {
		t.Errorf("a provider's outage makes the worker unready: %v", err)
	}
	if err := simulator.SetFaults(sim.Faults{}); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	e := p.check(t, sent)
	t.Logf("all done %s after the provider was back", time.Since(back).Round(time.Millisecond))
	e.mustHaveRunOnce(t)
	if len(e.deadLetters) > 0 {
		t.Errorf("dead letters: %v", e.deadLetters)
	}
	worker.says(`"dependency":"llm/sim","type":"agent","out_for":.*"message":"a dependency answers again"`, time.Second)
}

// agentOfOneType serves a handler that calls the LLM proxy for tasks of type
// "agent", and answers like the echo handler in any case.
func agentOfOneType(t testing.TB) (url string, proxyIs func(string)) {
	var (
		mu    sync.Mutex
		proxy string
	)
	chat := func(token string) error {
		mu.Lock()
		url := proxy
		mu.Unlock()
		body := []byte(`{"model":"m","messages":[{"role":"user","content":"hello"}]}`)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/chat/completions", bytes.NewReader(body))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Millrace-Turn", token)
		client := http.Client{Transport: oneShot}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var turn struct {
			Task struct {
				Type    string          `json:"type"`
				Payload json.RawMessage `json:"payload"`
			} `json:"task"`
		}
		if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if turn.Task.Type == "agent" {
			if err := chat(r.Header.Get("Millrace-Turn")); err != nil {
				http.Error(w, "the LLM: "+err.Error(), http.StatusBadGateway)
				return
			}
		}
		said := string(turn.Task.Payload)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"messages": []map[string]string{{"role": "user", "content": said}, {"role": "assistant", "content": said}},
			"result":   turn.Task.Payload,
		})
	}))
	t.Cleanup(server.Close)
	return server.URL, func(url string) {
		mu.Lock()
		defer mu.Unlock()
		proxy = url
	}
}
