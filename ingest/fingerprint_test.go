package ingest_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/ingest"
)

// memory keeps fingerprints, or fails.
type memory struct {
	mu    sync.Mutex
	held  map[string]string
	calls int
	fail  func(ctx context.Context) error
}

func (m *memory) Claim(ctx context.Context, fingerprints map[string]string) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.fail != nil {
		return nil, m.fail(ctx)
	}
	if m.held == nil {
		m.held = make(map[string]string)
	}
	for id, fingerprint := range fingerprints {
		if m.held[id] == "" {
			m.held[id] = fingerprint
		}
	}
	return maps.Clone(m.held), nil
}

func TestAnotherTaskUnderAUsedKeyIsRefused(t *testing.T) {
	const first = `{"conversation":"c1","type":"t","payload":{"n":1},"attributes":{"a":"1","b":"2"}}`
	later := time.Now().Add(time.Hour).Format(time.RFC3339)
	for what, test := range map[string]struct {
		body   string
		reused bool
	}{
		"the same":             {first, false},
		"its fields reordered": {`{"attributes":{"b":"2","a":"1"},"type":"t","payload":{"n":1},"conversation":"c1"}`, false},
		"another deadline":     {strings.Replace(first, `"type"`, `"deadline":"`+later+`","type"`, 1), false},
		"another tenant":       {strings.Replace(first, `"type"`, `"tenant":"x","type"`, 1), false},
		"another conversation": {strings.Replace(first, "c1", "c2", 1), true},
		"no conversation":      {strings.Replace(first, `"c1"`, "null", 1), true},
		"another type":         {strings.Replace(first, `"t"`, `"u"`, 1), true},
		"another payload":      {strings.Replace(first, `"n":1`, `"n":2`, 1), true},
		"another attribute":    {strings.Replace(first, `"1"`, `"3"`, 1), true},
		"another priority":     {strings.Replace(first, `"type"`, `"priority":"high","type"`, 1), true},
		"other busy policy":    {strings.Replace(first, `"type"`, `"on_busy":"reject","type"`, 1), true},
		"other attempts":       {strings.Replace(first, `"type"`, `"max_attempts":2,"type"`, 1), true},
	} {
		t.Run(what, func(t *testing.T) {
			f := start(t, func(c *ingest.Config) { c.Fingerprints = &memory{} })
			f.mustSubmit(first, "Idempotency-Key", "k")
			r := f.submit(test.body, "Idempotency-Key", "k")
			if !test.reused {
				if r.status != http.StatusAccepted {
					t.Errorf("status %d: %s", r.status, r.body)
				}
				return
			}
			if p := r.problem(t); r.status != 422 || p.Type != ingest.ProblemPrefix+"idempotency-key-reused" || p.Errors[0].Header != "Idempotency-Key" {
				t.Errorf("status %d, problem %+v", r.status, p)
			}
			if n := f.ends(); n != 1 {
				t.Errorf("%d records, want 1", n)
			}
			f.mustSubmit(test.body, "Idempotency-Key", "another")
			f.mustSubmit(test.body)
		})
	}
}

func TestLinesOfABatchAreComparedInFewCalls(t *testing.T) {
	m := &memory{}
	f := start(t, func(c *ingest.Config) { c.Fingerprints = m })
	const lines = 1100
	body := strings.Repeat(`{"conversation":"a","type":"t","payload":1}`+"\n", lines)
	for range 2 {
		if results, r := f.batch(body, "Idempotency-Key", "k"); r.status != http.StatusAccepted || len(results) != lines {
			t.Fatalf("status %d: %s", r.status, r.body)
		}
	}
	if m.calls != 6 {
		t.Errorf("%d calls for twice %d lines, want 6", m.calls, lines)
	}
	results, r := f.batch(strings.Replace(body, `:1}`, `:2}`, 1), "Idempotency-Key", "k")
	if r.status != http.StatusOK || results[0].Status != 422 || results[0].Error.Type != ingest.ProblemPrefix+"idempotency-key-reused" || results[1].Status != 202 {
		t.Errorf("status %d, first %+v, second %+v", r.status, results[0], results[1])
	}
	m.calls = 0
	if _, r := f.batch(body); r.status != http.StatusAccepted || m.calls != 0 {
		t.Errorf("without a key: status %d, %d calls", r.status, m.calls)
	}
}

func TestTasksAreTakenInWhileKeysCannotBeCompared(t *testing.T) {
	for what, fail := range map[string]func(context.Context) error{
		"an error":  func(context.Context) error { return errors.New("out") },
		"no answer": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(what, func(t *testing.T) {
			m := &memory{fail: fail}
			f := start(t, func(c *ingest.Config) { c.Fingerprints = m })
			begun := time.Now()
			for _, payload := range []string{"1", "2", "3"} {
				f.mustSubmit(`{"conversation":"a","type":"t","payload":`+payload+`}`, "Idempotency-Key", "k")
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			if n := f.metric("millrace_ingest_keys_not_compared_total"); n != 3 {
				t.Errorf("%v counted, want 3", n)
			}
		})
	}
}
