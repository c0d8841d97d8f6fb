package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultTimeout = 2 * time.Second
	// cacheFor keeps probes of many watchers from becoming load on what is probed.
	cacheFor = time.Second
)

// Check returns why something is not well, or nil.
type Check func(ctx context.Context) error

// Health answers whether a process is alive and whether it is ready. The zero
// value is not ready to use: make one with NewHealth.
type Health struct {
	live, ready checks
}

// NewHealth returns a Health without checks: alive and ready. A check that does
// not answer within timeout has failed; 0 means 2 seconds.
func NewHealth(timeout time.Duration) *Health {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	return &Health{live: checks{timeout: timeout}, ready: checks{timeout: timeout}}
}

// Live adds a check of the process itself. When it fails for long, restarting
// the process must be the cure; so it never asks another service.
func (h *Health) Live(name string, check Check) { h.live.add(name, check) }

// Ready adds a check of what the process needs in order to do its work.
func (h *Health) Ready(name string, check Check) { h.ready.add(name, check) }

// Handle adds /livez and /readyz to mux. Both answer 200 or 503; with ?verbose
// they list each check. Names are public to whoever reaches the address, the
// reasons of failures are as well.
func (h *Health) Handle(mux *http.ServeMux) {
	mux.Handle("GET /livez", h.live.handler())
	mux.Handle("GET /readyz", h.ready.handler())
}

// result is what a check said.
type result struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Error is why not.
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"took_ns"`
}

func failed(results []result) error {
	var errs []error
	for _, r := range results {
		if !r.OK {
			errs = append(errs, fmt.Errorf("%s: %s", r.Name, r.Error))
		}
	}
	return errors.Join(errs...)
}

type namedCheck struct {
	name  string
	check Check
	busy  atomic.Bool
}

// ask runs the check until ctx ends. A check that goes on after that is not
// started again before it has returned.
func (n *namedCheck) ask(ctx context.Context) error {
	if !n.busy.CompareAndSwap(false, true) {
		return errors.New("an earlier check has still not returned")
	}
	done := make(chan error, 1)
	go func() {
		err := n.check(ctx)
		n.busy.Store(false)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("no answer in time")
	}
}

type checks struct {
	timeout time.Duration

	mu      sync.Mutex
	all     []*namedCheck
	results []result
	ranAt   time.Time
}

func (c *checks) add(name string, check Check) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, &namedCheck{name: name, check: check})
	c.ranAt = time.Time{}
}

// run runs all checks side by side. Callers that come while they run wait for
// the same results.
func (c *checks) run(ctx context.Context) []result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ranAt.IsZero() && time.Since(c.ranAt) < cacheFor {
		return c.results
	}
	// The results serve others too, so they must not fail because this caller
	// hangs up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	results := make([]result, len(c.all))
	var group sync.WaitGroup
	for i, one := range c.all {
		group.Go(func() {
			start := time.Now()
			err := one.ask(ctx)
			results[i] = result{Name: one.name, OK: err == nil, Took: time.Since(start)}
			if err != nil {
				results[i].Error = err.Error()
			}
		})
	}
	group.Wait()
	slices.SortStableFunc(results, func(a, b result) int { return strings.Compare(a.Name, b.Name) })
	c.results, c.ranAt = results, time.Now()
	return results
}

func (c *checks) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		results := c.run(r.Context())
		err := failed(results)
		w.Header().Set("Cache-Control", "no-store")
		if r.URL.Query().Has("verbose") {
			w.Header().Set("Content-Type", "application/json")
			writeStatus(w, err)
			report := struct {
				OK     bool     `json:"ok"`
				Checks []result `json:"checks"`
			}{err == nil, results}
			_ = json.NewEncoder(w).Encode(report)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		writeStatus(w, err)
		if err != nil {
			_, _ = fmt.Fprintln(w, err)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
}

func writeStatus(w http.ResponseWriter, err error) {
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}
