package ingest_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/ingest"
)

// What the server itself costs, with a producer that acknowledges at once.

func benchHandler(b *testing.B) http.Handler {
	b.Helper()
	rules := parseRules(b, `{"rules":[{"name":"large","when":"size > 100000","priority":"batch"},{"name":"chat","when":"type.startsWith('chat.')","priority":"high"}]}`)
	server, err := ingest.New(ingest.Config{
		Classifier: rules,
		Producer:   &stubProducer{produce: func(_ context.Context, r *kgo.Record, promise func(*kgo.Record, error)) { promise(r, nil) }},
	})
	if err != nil {
		b.Fatal(err)
	}
	return server.Handler()
}

var benchLine = `{"conversation":"c-1","type":"chat.message","payload":{"text":"` + strings.Repeat("x", 400) + `"}}`

func post(b *testing.B, h http.Handler, path, contentType, body string) {
	b.Helper()
	r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusAccepted {
		b.Fatal(w.Code, w.Body)
	}
}

func BenchmarkSubmit(b *testing.B) {
	h := benchHandler(b)
	b.ReportAllocs()
	for b.Loop() {
		post(b, h, "/v1/tasks", "application/json", benchLine)
	}
}

func BenchmarkBatch(b *testing.B) {
	h := benchHandler(b)
	const lines = 1000
	body := strings.Repeat(benchLine+"\n", lines)
	b.ReportAllocs()
	for b.Loop() {
		post(b, h, "/v1/tasks:batch", "application/x-ndjson", body)
	}
	b.ReportMetric(float64(b.N*lines)/b.Elapsed().Seconds(), "tasks/s")
	b.ReportMetric(0, "ns/op")
}
