//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// badRequest is a request that must be refused.
type badRequest struct {
	name    string
	body    string
	headers map[string]string // beside a JSON content type; an empty value removes it
	method  string            // POST if empty
	path    string            // /v1/tasks if empty
	status  int
	problem string // the name of its type
	says    string // part of the detail
}

// Every bad input gets a clear error, and the pipeline goes on: over HTTP a
// problem document, over Kafka a dead letter with its reason.
func TestBadInputs(t *testing.T) {
	p := newPipeline(t, services{}, "MILLRACE_RETRY_MIN=10ms")
	p.startIngest()
	p.start("worker")
	t.Run("http", func(t *testing.T) {
		for i, in := range badRequests() {
			t.Run(in.name, func(t *testing.T) {
				p.refuses(t, in)
				p.mustComplete(t, fmt.Sprintf("after bad request %d", i))
			})
		}
	})
	t.Run("kafka", func(t *testing.T) {
		for i, in := range badRecords() {
			t.Run(in.name, func(t *testing.T) { p.gives(t, in, int32(i%partitions)) })
		}
		p.oneDeadLetterEach(t, badRecords())
	})
	t.Run("duplicates", func(t *testing.T) { p.collapses(t) })
}

func badRequests() []badRequest {
	const good = `{"conversation":"bad","type":"t","payload":1}`
	with := func(fields string) string { return `{"conversation":"bad","type":"t","payload":1,` + fields + `}` }
	long := func(n int) string { return strings.Repeat("x", n) }
	return []badRequest{
		{name: "5 MiB", body: with(`"tenant":"` + long(5<<20) + `"`), status: 413, problem: "body-too-large", says: "at most"},
		{name: "5 MiB of payload", body: `{"conversation":"bad","type":"t","payload":"` + long(5<<20) + `"}`, status: 413, problem: "body-too-large"},
		{name: "payload above the bound", body: `{"conversation":"bad","type":"t","payload":"` + long(1<<20) + `"}`, status: 413, problem: "payload-too-large"},
		{name: "empty body", status: 400, problem: "empty-body"},
		{name: "broken JSON", body: `{"conversation":"bad","type" "t"}`, status: 400, problem: "malformed-json", says: "line 1"},
		{name: "JSON cut short", body: `{"conversation":"bad"`, status: 400, problem: "malformed-json"},
		{name: "two tasks", body: good + good, status: 400, problem: "malformed-json"},
		{name: "not UTF-8", body: "{\"conversation\":\"\xff\"}", status: 400, problem: "malformed-json", says: "UTF-8"},
		{name: "an array", body: "[" + good + "]", status: 422, problem: "invalid-field", says: "object"},
		{name: "unknown priority", body: with(`"priority":"urgent"`), status: 422, problem: "unknown-priority", says: "high, normal, batch"},
		{name: "priority of the wrong type", body: with(`"priority":1`), status: 422, problem: "invalid-field", says: "#/priority"},
		{name: "conversation of the wrong type", body: `{"conversation":{},"type":"t","payload":1}`, status: 422, problem: "invalid-field", says: "#/conversation"},
		{name: "conversation too long", body: `{"conversation":"` + long(257) + `","type":"t","payload":1}`, status: 422, problem: "invalid-field", says: "256"},
		{name: "conversation with a control character", body: `{"conversation":"a\u0000b","type":"t","payload":1}`, status: 422, problem: "invalid-field", says: "control"},
		{name: "empty conversation", body: `{"conversation":"","type":"t","payload":1}`, status: 422, problem: "invalid-field"},
		{name: "no conversation", body: `{"type":"t","payload":1}`, status: 422, problem: "missing-field", says: "#/conversation"},
		{name: "no type", body: `{"conversation":"bad","payload":1}`, status: 422, problem: "missing-field", says: "#/type"},
		{name: "type too long", body: `{"conversation":"bad","type":"` + long(129) + `","payload":1}`, status: 422, problem: "invalid-field", says: "128"},
		{name: "no payload", body: `{"conversation":"bad","type":"t"}`, status: 422, problem: "missing-field", says: "#/payload"},
		{name: "unknown field", body: with(`"prioritty":"high"`), status: 422, problem: "unknown-field", says: "prioritty"},
		{name: "field given twice", body: with(`"type":"u"`), status: 422, problem: "invalid-field", says: "twice"},
		{name: "deadline that is no time", body: with(`"deadline":"tomorrow"`), status: 422, problem: "invalid-field", says: "RFC 3339"},
		{name: "deadline that has passed", body: with(`"deadline":"2001-01-01T00:00:00Z"`), status: 422, problem: "invalid-field", says: "passed"},
		{name: "attempts out of range", body: with(`"max_attempts":0`), status: 422, problem: "invalid-field", says: "#/max_attempts"},
		{name: "attribute of the wrong type", body: with(`"attributes":{"a":1}`), status: 422, problem: "invalid-field", says: "#/attributes/a"},
		{name: "attribute with a taken name", body: with(`"attributes":{"id":"x"}`), status: 422, problem: "invalid-field", says: "#/attributes/id"},
		{name: "nested deep", body: with(`"attributes":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)), status: 422, problem: "too-deep"},
		{name: "no content type", body: good, headers: map[string]string{"Content-Type": ""}, status: 415, problem: "unsupported-media-type"},
		{name: "other content type", body: good, headers: map[string]string{"Content-Type": "text/plain"}, status: 415, problem: "unsupported-media-type"},
		{name: "nonsense for a content type", body: good, headers: map[string]string{"Content-Type": ";;"}, status: 415, problem: "unsupported-media-type"},
		{name: "unknown encoding", body: good, headers: map[string]string{"Content-Encoding": "br"}, status: 415, problem: "unsupported-encoding"},
		{name: "not the encoding it says", body: good, headers: map[string]string{"Content-Encoding": "gzip"}, status: 400, problem: "bad-encoding"},
		{name: "idempotency key too long", body: good, headers: map[string]string{"Idempotency-Key": long(256)}, status: 400, problem: "invalid-header", says: "255"},
		{name: "idempotency key not ASCII", body: good, headers: map[string]string{"Idempotency-Key": "schlüssel"}, status: 400, problem: "invalid-header"},
		{name: "unknown parameter", path: "/v1/tasks?wiat=1", body: good, status: 400, problem: "invalid-parameter", says: "wiat"},
		{name: "unknown task", method: http.MethodGet, path: "/v1/tasks/nobody", status: 404, problem: "task-not-found"},
		{name: "unknown conversation", method: http.MethodGet, path: "/v1/conversations/nobody", status: 404, problem: "conversation-not-found"},
		{name: "wait that is no duration", method: http.MethodGet, path: "/v1/tasks/nobody?wait=soon", status: 400, problem: "invalid-parameter", says: "wait"},
		{name: "control character in a path", method: http.MethodGet, path: "/v1/conversations/a%00b", status: 400, problem: "invalid-parameter"},
		{name: "bytes that are no UTF-8 in a path", method: http.MethodGet, path: "/v1/conversations/a%ff", status: 400, problem: "invalid-parameter"},
		{name: "limit out of range", method: http.MethodGet, path: "/v1/dead-letters?limit=0", status: 400, problem: "invalid-parameter"},
		{name: "wrong method", method: http.MethodPut, body: good, status: 405, problem: "method-not-allowed"},
		{name: "no such route", method: http.MethodGet, path: "/v2/tasks", status: 404, problem: "route-not-found"},
		{name: "empty batch", path: "/v1/tasks:batch", headers: map[string]string{"Content-Type": "application/x-ndjson"}, status: 400, problem: "empty-body"},
		{name: "batch of another content type", path: "/v1/tasks:batch", body: good, headers: map[string]string{"Content-Type": "text/csv"}, status: 415, problem: "unsupported-media-type"},
	}
}

// refuses sends a bad request and checks the problem document that comes back.
func (p *pipeline) refuses(t *testing.T, in badRequest) {
	t.Helper()
	method, path := in.method, in.path
	if method == "" {
		method = http.MethodPost
	}
	if path == "" {
		path = "/v1/tasks"
	}
	req, err := http.NewRequestWithContext(t.Context(), method, *p.api.Load()+path, strings.NewReader(in.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for name, value := range in.headers {
		req.Header.Set(name, value)
		if value == "" {
			req.Header.Del(name)
		}
	}
	client := http.Client{Timeout: 20 * time.Second, Transport: oneShot}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var told problem
	if err := json.Unmarshal(body, &told); err != nil || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("%s, not a problem document: %s", resp.Status, bytes.TrimSpace(body))
	}
	if resp.StatusCode != in.status || told.Status != in.status || told.Type != "urn:millrace:problem:"+in.problem {
		t.Errorf("%s with %v, want %d %s", resp.Status, &told, in.status, in.problem)
	}
	if told.Title == "" || told.Detail == "" || len(told.Detail) > 2000 || !strings.Contains(told.Detail, in.says) {
		t.Errorf("title %q and detail %.2000q, want one that says %q", told.Title, told.Detail, in.says)
	}
}
