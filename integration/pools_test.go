//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/internal/testenv"
)

// watchfulEcho is slowEcho with an eye on what runs at once.
type watchfulEcho struct {
	url string

	mu      sync.Mutex
	running map[string]int // turns, by conversation
	most    int            // turns of one conversation at once, so far
	calls   int
}

func newWatchfulEcho(t testing.TB) *watchfulEcho {
	e := &watchfulEcho{running: make(map[string]int)}
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	e.url = server.URL
	return e
}

func (e *watchfulEcho) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var turn struct {
		Conversation string `json:"conversation"`
		Task         struct {
			Payload json.RawMessage `json:"payload"`
		} `json:"task"`
	}
	if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e.mu.Lock()
	e.calls++
	e.running[turn.Conversation]++
	e.most = max(e.most, e.running[turn.Conversation])
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.running[turn.Conversation]--
		e.mu.Unlock()
	}()
	work := time.NewTimer(10*time.Millisecond + rand.N(20*time.Millisecond))
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

func (e *watchfulEcho) seen() (most, calls int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.most, e.calls
}

// startPools starts two pools that share the conversations: two workers for high
// and two for the rest.
func (p *pipeline) startPools() map[string][]*process {
	p.t.Helper()
	pools := make(map[string][]*process)
	for pool, priorities := range map[string]string{"chat": "high", "bulk": "normal,batch"} {
		for range 2 {
			pools[pool] = append(pools[pool], p.launch("worker", "MILLRACE_POOL="+pool, "MILLRACE_PRIORITIES="+priorities))
		}
	}
	for _, workers := range pools {
		for _, w := range workers {
			w.ready()
		}
	}
	return pools
}

// metric returns the sum of a process' samples of a metric.
func (p *process) metric(t testing.TB, name string) float64 {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: oneShot}
	resp, err := client.Get(p.url() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(body)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[0] != name && !strings.HasPrefix(fields[0], name+"{") {
			continue
		}
		value, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		t.Fatalf("%s has no metric %s", p.name, name)
	}
	return sum
}

// Two pools, one for high and one for the rest, have the same conversations. Their
// turns never run at once, none runs twice, and neither pool starves.
func TestTwoPoolsShareConversations(t *testing.T) {
	echo := newWatchfulEcho(t)
	p := newPipeline(t, services{}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+echo.url, "MILLRACE_SLOTS=16")
	pools := p.startPools()
	p.startIngest()
	const conversations, turns = 100, 12
	e := p.check(t, p.send(load{conversations: conversations, turns: turns, rate: 400}).wait())
	e.mustHaveRunOnce(t)
	most, calls := echo.seen()
	if most != 1 {
		t.Errorf("%d turns of one conversation ran at once", most)
	}
	if calls != conversations*turns {
		t.Errorf("the handler was called %d times for %d tasks", calls, conversations*turns)
	}
	for name, workers := range pools {
		second := 0.0
		for _, w := range workers {
			second += w.metric(t, "millrace_consumer_second_runs_total")
		}
		if second != 0 {
			t.Errorf("pool %s counts %v second runs", name, second)
		}
	}
	// What ingest and lag say of the pools.
	for pool, priorities := range map[string]string{"chat": "high", "bulk": "normal,batch"} {
		c := launch(t, "lag", append(p.env[:len(p.env):len(p.env)], "MILLRACE_POOL="+pool, "MILLRACE_PRIORITIES="+priorities), "lag", "--json")
		if code := c.wait(startPatience); code != 0 {
			t.Fatalf("millrace lag ended with %d", code)
		}
		var lag struct {
			Group      string
			Members    int
			Partitions []struct{ Lag int64 }
		}
		if err := json.Unmarshal(c.output(), &lag); err != nil {
			t.Fatal(err)
		}
		if want := partitions * (strings.Count(priorities, ",") + 1); lag.Group != p.prefix+pool || lag.Members != 2 || len(lag.Partitions) != want {
			t.Errorf("lag of %s: group %s with %d members and %d partitions, want %d", pool, lag.Group, lag.Members, len(lag.Partitions), want)
		}
		for i, one := range lag.Partitions {
			if one.Lag != 0 {
				t.Errorf("lag of %s in its partition %d: %d", pool, i, one.Lag)
			}
		}
	}
}

// Redis goes away under the load of two pools and comes back empty. Turns may run
// at once meanwhile: nothing is lost or doubled, and what ran twice is counted.
func TestTwoPoolsLoseRedis(t *testing.T) {
	server := testenv.StartRedis(t)
	echo := newWatchfulEcho(t)
	p := newPipeline(t, services{redis: server.URL}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+echo.url, "MILLRACE_SLOTS=16",
		"MILLRACE_REDIS_DEGRADED=run")
	pools := p.startPools()
	p.startIngest()
	const conversations, turns = 80, 12
	running := p.send(load{conversations: conversations, turns: turns, rate: 40})
	p.awaitCompletions(conversations * turns / 6)
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	stopped, _ := p.count(t.Context(), "completions")
	leaseless := func() (n float64) {
		for _, workers := range pools {
			for _, w := range workers {
				n += w.metric(t, "millrace_consumer_leaseless_turns_total")
			}
		}
		return n
	}
	eventually(t, 30*time.Second, "turns go on without leases", func() error {
		if n := leaseless(); n < 20 {
			return fmt.Errorf("%v have", n)
		}
		return nil
	})
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := p.check(t, running.wait())
	second := 0.0
	for _, workers := range pools {
		for _, w := range workers {
			second += w.metric(t, "millrace_consumer_second_runs_total")
		}
	}
	most, calls := echo.seen()
	t.Logf("%d were done when Redis stopped; %v turns without a lease, at most %d of one conversation at once, %d calls for %d tasks, %v second runs",
		stopped, leaseless(), most, calls, len(e.completions), second)
	if extra := calls - len(e.completions); float64(extra) > second {
		t.Errorf("%d calls more than tasks, and only %v second runs counted", extra, second)
	}
}
