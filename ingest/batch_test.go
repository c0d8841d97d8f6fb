package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/ingest"
)

func TestBadLineLosesNothingElse(t *testing.T) {
	f := start(t, func(c *ingest.Config) { c.MaxPayloadBytes = 1_000 })
	lines := []string{
		`{"conversation":"a","type":"t","payload":1}`,
		`{"conversation":"a","type":"t"`,
		``,
		`{"conversation":"a","type":"t","payload":2,"priority":"urgent"}`,
		`{"conversation":"b","type":"t","payload":3,"priority":"high"}`,
		`{"conversation":"b","type":"t","payload":"` + strings.Repeat("x", 300_000) + `"}`,
		`{"conversation":"a","type":"t","payload":4}`, // without an end
	}
	results, r := f.batch(strings.Join(lines, "\n"))
	if r.status != http.StatusOK {
		t.Errorf("status %d, want 200 as not all were accepted", r.status)
	}
	var got []string
	for _, one := range results {
		what := ""
		if one.Error != nil {
			what = strings.TrimPrefix(one.Error.Type, ingest.ProblemPrefix)
		}
		got = append(got, fmt.Sprint(one.Line, " ", one.Status, " ", what, one.Priority))
		if (one.TaskID != "") != (one.Status == http.StatusAccepted) {
			t.Errorf("line %d: id %q with status %d", one.Line, one.TaskID, one.Status)
		}
	}
	want := []string{"1 202 normal", "2 400 malformed-json", "4 422 unknown-priority", "5 202 high", "6 413 body-too-large", "7 202 normal"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if n := f.ends(); n != 3 {
		t.Errorf("%d records, want 3", n)
	}
}

func TestBatchKeepsTheOrderOfEachConversation(t *testing.T) {
	f := start(t, nil)
	const conversations, each = 20, 100
	var body strings.Builder
	for i := range each {
		for c := range conversations {
			fmt.Fprintf(&body, `{"conversation":"c%d","type":"t","payload":%d}`+"\n", c, i)
		}
	}
	results, r := f.batch(body.String())
	if r.status != http.StatusAccepted || len(results) != conversations*each {
		t.Fatalf("status %d with %d results", r.status, len(results))
	}
	next := make(map[string]int)
	for _, tasks := range f.log(millrace.Normal, conversations*each) {
		for _, task := range tasks {
			if want := fmt.Sprint(next[task.Conversation]); string(task.Payload) != want {
				t.Fatalf("%s: payload %s, want %s", task.Conversation, task.Payload, want)
			}
			next[task.Conversation]++
		}
	}
}

func TestBatchAnswersAnArrayToWhoAsksForJSON(t *testing.T) {
	f := start(t, nil)
	r := f.do(http.MethodPost, "/v1/tasks:batch", strings.NewReader(`{"conversation":"a","type":"t","payload":1}`+"\n\n"),
		map[string]string{"Content-Type": "application/x-ndjson", "Accept": "application/json"})
	var results []ingest.BatchResult
	if err := json.Unmarshal(r.body, &results); err != nil || len(results) != 1 || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("%v: %s %s", err, r.header.Get("Content-Type"), r.body)
	}
}

func TestBatchRepeatedUnderItsKeyIsTheSameTasks(t *testing.T) {
	f := start(t, nil)
	body := strings.Repeat(`{"conversation":"a","type":"t","payload":1}`+"\n", 3)
	ids := func(key string) []string {
		results, _ := f.batch(body, "Idempotency-Key", key)
		var ids []string
		for _, r := range results {
			ids = append(ids, r.TaskID)
		}
		return ids
	}
	first, again, other := ids("k"), ids("k"), ids("l")
	if !slices.Equal(first, again) || slices.Equal(first, other) {
		t.Errorf("ids %v, repeated %v, other key %v", first, again, other)
	}
	if len(slices.Compact(slices.Sorted(slices.Values(first)))) != 3 {
		t.Errorf("lines share ids: %v", first)
	}
}

func TestBatchBoundsStopItWithoutLosingWhatWasAccepted(t *testing.T) {
	line := `{"conversation":"a","type":"t","payload":1}` + "\n"
	for name, c := range map[string]struct {
		change  func(*ingest.Config)
		body    string
		problem string
	}{
		"lines": {func(c *ingest.Config) { c.MaxBatchLines = 2 }, strings.Repeat(line, 3), "too-many-lines"},
		"bytes": {func(c *ingest.Config) { c.MaxBatchBytes = 1 << 20 }, line + line + strings.Repeat(" ", 2<<20), "body-too-large"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, c.change)
			// A body of unknown length is read until the bound is met.
			r := f.do(http.MethodPost, "/v1/tasks:batch", struct{ *bytes.Reader }{bytes.NewReader([]byte(c.body))}, map[string]string{"Content-Type": "application/x-ndjson"})
			lines := bytes.Split(bytes.TrimSpace(r.body), []byte("\n"))
			var last ingest.BatchResult
			if err := json.Unmarshal(lines[len(lines)-1], &last); err != nil || len(lines) != 3 || r.status != http.StatusOK {
				t.Fatalf("%v: status %d, %s", err, r.status, r.body)
			}
			if last.Error == nil || last.Error.Type != ingest.ProblemPrefix+c.problem || last.Line != 3 {
				t.Errorf("last line %+v", last)
			}
			if n := f.ends(); n != 2 {
				t.Errorf("%d records, want 2", n)
			}
		})
	}
}

func TestBatchRefusedAsAWholeIsAProblem(t *testing.T) {
	f := start(t, nil)
	for name, c := range map[string]struct {
		body    string
		headers []string
		status  int
		problem string
	}{
		"empty":        {"", nil, 400, "empty-body"},
		"blank":        {"\n \n", nil, 400, "empty-body"},
		"content type": {"{}", []string{"Content-Type", "application/json"}, 415, "unsupported-media-type"},
		"not gzip":     {"{}", []string{"Content-Encoding", "gzip"}, 400, "bad-encoding"},
		"too large":    {strings.Repeat(" ", 65<<20), nil, 413, "body-too-large"},
	} {
		_, r := f.batch(c.body, c.headers...)
		if p := r.problem(t); r.status != c.status || p.Type != ingest.ProblemPrefix+c.problem {
			t.Errorf("%s: status %d, problem %+v", name, r.status, p)
		}
	}
}

// Once Kafka has failed a line, a later one must not get ahead of it, and no
// further line waits.
func TestBatchStopsProducingOnceKafkaFails(t *testing.T) {
	produced := 0
	f := serve(t, ingest.Config{Producer: &stubProducer{produce: func(_ context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
		produced++
		if produced == 2 {
			promise(r, errors.New("broken"))
			return
		}
		promise(r, nil)
	}}})
	results, r := f.batch(strings.Repeat(`{"conversation":"a","type":"t","payload":1}`+"\n", 4))
	var statuses []int
	for _, one := range results {
		statuses = append(statuses, one.Status)
	}
	if !slices.Equal(statuses, []int{202, 503, 503, 503}) || produced != 2 {
		t.Errorf("statuses %v, %d produced", statuses, produced)
	}
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestBatchWithoutAcknowledgementsAnswersInTime(t *testing.T) {
	f := serve(t, ingest.Config{ProduceTimeout: 20 * time.Millisecond, Producer: &stubProducer{produce: func(context.Context, *kgo.Record, func(*kgo.Record, error)) {}}})
	results, _ := f.batch(strings.Repeat(`{"conversation":"a","type":"t","payload":1}`+"\n", 500))
	if len(results) != 500 {
		t.Fatalf("%d results", len(results))
	}
	for _, one := range results {
		if one.Status != http.StatusServiceUnavailable {
			t.Fatalf("line %d: status %d", one.Line, one.Status)
		}
	}
}
