package ingest_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace"
	"millrace/ingest"
)

// fakeLag answers what a test sets, and tells when it was asked.
type fakeLag struct {
	mu      sync.Mutex
	samples map[millrace.Priority]ingest.LagSample
	err     error
	asked   chan struct{}
}

func (l *fakeLag) Lag(context.Context) (map[millrace.Priority]ingest.LagSample, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.asked <- struct{}{}:
	default:
	}
	return l.samples, l.err
}

// set changes the answer and returns once the server has taken it in.
func (l *fakeLag) set(err error, samples map[millrace.Priority]ingest.LagSample) {
	l.mu.Lock()
	l.samples, l.err = samples, err
	l.mu.Unlock()
	// The second read from now on begins after the first was taken in.
	for range 3 {
		<-l.asked
	}
}

func (f *fixture) statuses() []int {
	f.t.Helper()
	var got []int
	for _, p := range millrace.DefaultPriorities() {
		got = append(got, f.submit(`{"conversation":"c","type":"t","payload":1,"priority":"`+string(p)+`"}`).status)
	}
	return got
}

func TestHighIsRefusedLast(t *testing.T) {
	lag := &fakeLag{asked: make(chan struct{})}
	f := start(t, func(c *ingest.Config) {
		c.Lag, c.LagInterval = lag, time.Millisecond
		c.MaxLag = map[millrace.Priority]int64{"high": 100, "normal": 50, "batch": 1000}
		c.MaxLagAge = map[millrace.Priority]time.Duration{"batch": time.Hour}
	})
	type samples = map[millrace.Priority]ingest.LagSample
	for name, c := range map[string]struct {
		samples samples
		want    []int
	}{
		"idle":              {samples{"high": {}, "normal": {}, "batch": {}}, []int{202, 202, 202}},
		"at the bounds":     {samples{"high": {Records: 100}, "normal": {Records: 50}, "batch": {Records: 1000}}, []int{202, 202, 202}},
		"batch above":       {samples{"high": {}, "normal": {}, "batch": {Records: 1001}}, []int{202, 202, 429}},
		"batch too old":     {samples{"high": {}, "normal": {}, "batch": {Records: 1, Age: 2 * time.Hour}}, []int{202, 202, 429}},
		"normal takes more": {samples{"high": {}, "normal": {Records: 51}, "batch": {}}, []int{202, 429, 429}},
		"high takes all":    {samples{"high": {Records: 101}, "normal": {}, "batch": {}}, []int{429, 429, 429}},
	} {
		lag.set(nil, c.samples)
		if got := f.statuses(); !slices.Equal(got, c.want) {
			t.Errorf("%s: statuses %v, want %v", name, got, c.want)
		}
	}
}

func TestRetryAfterFollowsTheDrainRate(t *testing.T) {
	lag := &fakeLag{asked: make(chan struct{})}
	f := start(t, func(c *ingest.Config) {
		c.Lag, c.LagInterval = lag, time.Millisecond
		c.MaxLag = map[millrace.Priority]int64{"normal": 1000}
	})
	for _, c := range []struct {
		sample ingest.LagSample
		want   int
	}{
		{ingest.LagSample{Records: 2000, DrainRate: 100}, 10},
		{ingest.LagSample{Records: 1001, DrainRate: 100}, 1},
		{ingest.LagSample{Records: 1_000_000_000, DrainRate: 0.001}, 120},
		{ingest.LagSample{Records: 2000}, 15},
		{ingest.LagSample{Records: 2000, DrainRate: -5}, 15},
	} {
		lag.set(nil, map[millrace.Priority]ingest.LagSample{"high": {}, "normal": c.sample, "batch": {}})
		r := f.submit(`{"conversation":"c","type":"t","payload":1}`)
		p := r.problem(t)
		if got, err := strconv.Atoi(r.header.Get("Retry-After")); got != c.want || err != nil || p.Type != "urn:millrace:problem:overloaded" {
			t.Errorf("%+v: Retry-After %q, want %d; %s", c.sample, r.header.Get("Retry-After"), c.want, p.Type)
		}
	}
}

func TestUnknownLagKeepsItsLastValueAndThenAdmits(t *testing.T) {
	lag := &fakeLag{asked: make(chan struct{}), err: errors.New("no coordinator")}
	f := start(t, func(c *ingest.Config) {
		c.Lag, c.LagInterval, c.LagKeep = lag, time.Millisecond, 500*time.Millisecond
		c.MaxLag = map[millrace.Priority]int64{"normal": 10}
	})
	const body = `{"conversation":"c","type":"t","payload":1}`
	lag.set(errors.New("no coordinator"), nil)
	f.mustSubmit(body) // never known: refuses nothing
	if f.metric("millrace_ingest_lag_unknown_total", "priority", "normal") != 1 || f.metric("millrace_ingest_lag_errors_total") == 0 {
		t.Error("the unknown lag is not counted")
	}
	lag.set(nil, map[millrace.Priority]ingest.LagSample{"high": {}, "normal": {Records: 11}})
	lag.set(errors.New("no coordinator"), nil)
	if r := f.submit(body); r.status != http.StatusTooManyRequests {
		t.Errorf("status %d right after the reads began to fail, want 429", r.status)
	}
	deadline := time.After(10 * time.Second)
	for f.submit(body).status != http.StatusAccepted {
		select {
		case <-lag.asked:
		case <-deadline:
			t.Fatal("still refused by a lag that is long unknown")
		}
	}
}

// A refused line takes the later ones of its conversation along, so that
// sending the refused lines again keeps the order; others go on.
func TestRefusedLineHoldsItsConversation(t *testing.T) {
	lag := &fakeLag{asked: make(chan struct{})}
	f := start(t, func(c *ingest.Config) {
		c.Lag, c.LagInterval = lag, time.Millisecond
		c.MaxLag = map[millrace.Priority]int64{"batch": 10}
	})
	lag.set(nil, map[millrace.Priority]ingest.LagSample{"high": {}, "normal": {}, "batch": {Records: 11}})
	results, _ := f.batch(strings.Join([]string{
		`{"conversation":"a","type":"t","payload":1,"priority":"normal"}`,
		`{"conversation":"a","type":"t","payload":2,"priority":"batch"}`,
		`{"conversation":"a","type":"t","payload":3,"priority":"normal"}`,
		`{"conversation":"b","type":"t","payload":4,"priority":"normal"}`,
		`{"conversation":null,"type":"t","payload":5,"priority":"batch"}`,
		`{"conversation":null,"type":"t","payload":6,"priority":"normal"}`,
	}, "\n"))
	var got []int
	for _, r := range results {
		got = append(got, r.Status)
	}
	if want := []int{202, 429, 429, 202, 429, 202}; !slices.Equal(got, want) {
		t.Errorf("statuses %v, want %v", got, want)
	}
}
