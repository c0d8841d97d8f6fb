package ingest_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/ingest"
)

func TestAcceptedTaskIsInTheLogAsItWasSent(t *testing.T) {
	f := start(t, nil)
	const payload = `{ "text" : "grüße \u0041",  "n": 1.50, "n": 2 }`
	deadline := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	got := f.mustSubmit(fmt.Sprintf(`{"conversation":"c/1","type":"chat.message","payload": %s , "priority":"high","tenant":"acme",
		"deadline":%q,"max_attempts":3,"on_busy":"interrupt","attributes":{"channel":"web"}}`, payload, deadline.Format(time.RFC3339)),
		"Traceparent", parent, "Tracestate", "a=b")

	task := f.onlyTask(millrace.High)
	want := millrace.Task{
		ID: got.TaskID, Conversation: "c/1", Type: "chat.message", Tenant: "acme", Source: "urn:millrace:ingest",
		Time: task.Time, Deadline: deadline, MaxAttempts: 3, OnBusy: millrace.BusyInterrupt, ContentType: "application/json", Payload: []byte(payload),
		Attributes: map[string]string{"channel": "web"}, TraceParent: parent, TraceState: "a=b",
	}
	if !reflect.DeepEqual(task, want) {
		t.Errorf("got  %+v\nwant %+v", task, want)
	}
	if time.Since(task.Time).Abs() > time.Minute {
		t.Errorf("time %s is not now", task.Time)
	}
	if id, err := uuid.Parse(got.TaskID); err != nil || id.Version() != 7 {
		t.Errorf("task id %q, want a UUIDv7", got.TaskID)
	}
	if got.Priority != millrace.High || got.Status != millrace.StatusQueued || got.ConversationID != "c/1" {
		t.Errorf("answer %+v", got)
	}
	if n := f.metric("millrace_ingest_accepted_total", "priority", "high"); n != 1 {
		t.Errorf("accepted %v, want 1", n)
	}
	if n := f.metric("millrace_ingest_request_seconds", "route", "POST /v1/tasks", "status", "202"); n != 1 {
		t.Errorf("requests timed %v, want 1", n)
	}
}

func TestEveryJSONValueIsAPayload(t *testing.T) {
	f := start(t, nil)
	payloads := []string{`null`, `true`, `0`, `-1.5e300`, `""`, `"x"`, `[]`, `{}`, `[1,{"a":[]}]`, `{"a":"\"}"}`}
	sent := make(map[string]bool)
	for _, p := range payloads {
		f.mustSubmit(`{"conversation":"c","type":"t","payload":` + p + `}`)
		sent[p] = true
	}
	for _, tasks := range f.log(millrace.Normal, len(payloads)) {
		for _, task := range tasks {
			if !sent[string(task.Payload)] {
				t.Errorf("payload %s was not sent", task.Payload)
			}
			delete(sent, string(task.Payload))
		}
	}
	if len(sent) > 0 {
		t.Errorf("not in the log: %v", sent)
	}
}

func TestNullConversationIsAnUnkeyedTask(t *testing.T) {
	f := start(t, nil)
	f.mustSubmit(`{"conversation":null,"type":"t","payload":1,"tenant":null,"priority":null,"deadline":null,"attributes":null,"max_attempts":null}`)
	if task := f.onlyTask(millrace.Normal); task.Conversation != "" {
		t.Errorf("conversation %q, want none", task.Conversation)
	}
}

func TestIdempotencyKeyNamesTheTask(t *testing.T) {
	f := start(t, nil)
	const body = `{"conversation":"c","type":"t","payload":1,"tenant":"a"}`
	first := f.mustSubmit(body, "Idempotency-Key", "k-1")
	again := f.mustSubmit(body, "Idempotency-Key", "k-1")
	if first != again {
		t.Errorf("repeat got %+v, first %+v", again, first)
	}
	if id, err := uuid.Parse(first.TaskID); err != nil || id.Version() != 5 {
		t.Errorf("task id %q, want a UUIDv5", first.TaskID)
	}
	others := map[string]ingest.Accepted{
		"another key":    f.mustSubmit(body, "Idempotency-Key", "k-2"),
		"another tenant": f.mustSubmit(strings.Replace(body, `"a"`, `"b"`, 1), "Idempotency-Key", "k-1"),
		"no key":         f.mustSubmit(body),
	}
	for what, other := range others {
		if other.TaskID == first.TaskID {
			t.Errorf("%s: same id", what)
		}
	}
}

func TestCompressedBodiesAreInflatedWithinBounds(t *testing.T) {
	f := start(t, func(c *ingest.Config) { c.MaxPayloadBytes = 10_000 })
	compress := map[string]func(string) []byte{
		"gzip": func(s string) []byte {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			_, _ = z.Write([]byte(s))
			_ = z.Close()
			return b.Bytes()
		},
		"zstd": func(s string) []byte {
			z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			defer z.Close()
			return z.EncodeAll([]byte(s), nil)
		},
	}
	for encoding, c := range compress {
		headers := map[string]string{"Content-Type": "application/json", "Content-Encoding": encoding}
		send := func(b []byte) *response {
			return f.do(http.MethodPost, "/v1/tasks", bytes.NewReader(b), headers)
		}
		good := c(`{"conversation":"c","type":"t","payload":"` + strings.Repeat("a", 9_000) + `"}`)
		if r := send(good); r.status != http.StatusAccepted {
			t.Errorf("%s: status %d: %s", encoding, r.status, r.body)
		}
		if r := send(c(strings.Repeat(" ", 5<<20))); r.status != http.StatusRequestEntityTooLarge {
			t.Errorf("%s bomb: status %d: %s", encoding, r.status, r.body)
		}
		for what, b := range map[string][]byte{"cut": good[:len(good)/2], "garbage": []byte("garbage in here"), "empty": {}} {
			if r := send(b); r.status != http.StatusBadRequest {
				t.Errorf("%s %s: status %d: %s", encoding, what, r.status, r.body)
			}
		}
	}
}

func TestRequestIDsComeBack(t *testing.T) {
	f := start(t, nil)
	if id := f.submit(`{`, "X-Request-Id", "mine-1").header.Get("X-Request-Id"); id != "mine-1" {
		t.Errorf("id %q, want the one that was sent", id)
	}
	for _, bad := range []string{"", "with space", strings.Repeat("x", 200)} {
		if id := f.submit(`{`, "X-Request-Id", bad).header.Get("X-Request-Id"); id == bad || id == "" {
			t.Errorf("id %q for %q, want a new one", id, bad)
		}
	}
}

func TestInvalidTraceContextIsPassedOver(t *testing.T) {
	f := start(t, nil)
	for _, parent := range []string{"x", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"} {
		f.mustSubmit(`{"conversation":"c","type":"t","payload":1}`, "Traceparent", parent, "Tracestate", "a=b")
	}
	for _, tasks := range f.log(millrace.Normal, 4) {
		for _, task := range tasks {
			if task.TraceParent != "" || task.TraceState != "" {
				t.Errorf("trace %q %q carried on", task.TraceParent, task.TraceState)
			}
		}
	}
}

// stubProducer answers as a test tells it to.
type stubProducer struct {
	produce func(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error))
	flush   func(ctx context.Context) error
}

func (p *stubProducer) Produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
	p.produce(ctx, r, promise)
}

func (p *stubProducer) Flush(ctx context.Context) error {
	if p.flush == nil {
		return nil
	}
	return p.flush(ctx)
}

func TestUnacknowledgedTaskIsNotAccepted(t *testing.T) {
	for name, produce := range map[string]func(context.Context, *kgo.Record, func(*kgo.Record, error)){
		"failed": func(_ context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
			promise(r, errors.New("broken"))
		},
		"no word": func(context.Context, *kgo.Record, func(*kgo.Record, error)) {},
		"too late": func(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
			<-ctx.Done()
			promise(r, ctx.Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, ingest.Config{Producer: &stubProducer{produce: produce}, ProduceTimeout: 20 * time.Millisecond})
			r := f.submit(`{"conversation":"c","type":"t","payload":1}`)
			if p := r.problem(t); r.status != http.StatusServiceUnavailable || p.Type != "urn:millrace:problem:kafka-unavailable" {
				t.Errorf("status %d, problem %+v", r.status, p)
			}
			if r.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
}

func TestMissingTopicIsNamed(t *testing.T) {
	f := start(t, func(c *ingest.Config) { c.TopicPrefix = "absent." })
	r := f.submit(`{"conversation":"c","type":"t","payload":1}`)
	if p := r.problem(t); r.status != http.StatusServiceUnavailable || !strings.Contains(p.Detail, "absent.tasks.normal") {
		t.Errorf("status %d, detail %q", r.status, p.Detail)
	}
}

func TestLargestPayloadFitsARecord(t *testing.T) {
	f := start(t, nil)
	const frame = 2
	f.mustSubmit(`{"conversation":"c","type":"t","payload":"` + strings.Repeat("a", 1<<20-frame) + `"}`)
	r := f.submit(`{"conversation":"c","type":"t","payload":"` + strings.Repeat("a", 1<<20-frame+1) + `"}`)
	if p := r.problem(t); r.status != http.StatusRequestEntityTooLarge || p.Errors[0].Pointer != "#/payload" {
		t.Errorf("one byte more: status %d, problem %+v", r.status, p)
	}
}

func TestStopLosesNoAcceptedTask(t *testing.T) {
	f := start(t, nil)
	var mu sync.Mutex
	acceptedIDs := make(map[string]bool)
	firstDone := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for {
				r := f.submit(fmt.Sprintf(`{"conversation":"c%d","type":"t","payload":1}`, i))
				if r.status != http.StatusAccepted {
					if p := r.problem(t); p.Type != "urn:millrace:problem:shutting-down" {
						t.Errorf("problem %+v", p)
					}
					return
				}
				mu.Lock()
				acceptedIDs[strings.TrimPrefix(r.header.Get("Location"), "/v1/tasks/")] = true
				mu.Unlock()
				once.Do(func() { close(firstDone) })
			}
		})
	}
	<-firstDone
	f.stop()
	wg.Wait()
	for _, tasks := range f.log(millrace.Normal, int(f.ends())) {
		for _, task := range tasks {
			delete(acceptedIDs, task.ID)
		}
	}
	if len(acceptedIDs) > 0 {
		t.Errorf("%d accepted tasks are not in the log", len(acceptedIDs))
	}
}

func TestStopWaitsForRequestsThatProduce(t *testing.T) {
	handed, release := make(chan struct{}), make(chan struct{})
	var order []string
	var mu sync.Mutex
	note := func(s string) { mu.Lock(); defer mu.Unlock(); order = append(order, s) }
	f := serve(t, ingest.Config{Producer: &stubProducer{
		produce: func(_ context.Context, r *kgo.Record, promise func(*kgo.Record, error)) {
			close(handed)
			go func() { <-release; note("acknowledged"); promise(r, nil) }()
		},
		flush: func(context.Context) error { note("flushed"); return nil },
	}})
	answer := make(chan int, 1)
	go func() { answer <- f.submit(`{"conversation":"c","type":"t","payload":1}`).status }()
	<-handed
	stopped := make(chan struct{})
	go func() { f.stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Error("Run returned while a task waited for its acknowledgement")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if status := <-answer; status != http.StatusAccepted {
		t.Errorf("status %d, want 202", status)
	}
	<-stopped
	if !reflect.DeepEqual(order, []string{"acknowledged", "flushed"}) {
		t.Errorf("order %v", order)
	}
}
