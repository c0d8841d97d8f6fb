package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// pipeline is an API, a results topic and a history that work as they should,
// with faults on demand.
type pipeline struct {
	// answer overrides the API's answer when it returns true.
	answer func(w http.ResponseWriter, try int) bool
	// dropResult keeps a task's result back.
	dropResult func(n int) bool

	mu       sync.Mutex
	tries    int
	keys     map[string]string
	out      outcome
	pending  []millrace.TaskResult
	arrived  chan struct{}
	services map[string]string
}

func newPipeline() *pipeline {
	return &pipeline{
		keys: make(map[string]string), services: make(map[string]string),
		out: outcome{status: make(map[string]string)}, arrived: make(chan struct{}, 1),
	}
}

func (p *pipeline) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.URL.Path == "/ledger/summary" {
		fmt.Fprintf(w, `{"calls":%d,"statuses":{"200":9,"429":%d}}`, p.tries, p.tries)
		return
	}
	p.tries++
	if p.answer != nil && p.answer(w, p.tries) {
		return
	}
	key := r.Header.Get("Idempotency-Key")
	id := p.keys[key]
	if id == "" {
		id = fmt.Sprintf("task-%d", len(p.keys))
		p.keys[key] = id
		var body taskBody
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.finish(id, body)
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"task_id":%q,"priority":"normal","status":"queued"}`, id)
}

func (p *pipeline) finish(id string, body taskBody) {
	p.services[body.Conversation] += body.Attributes["service"] + " "
	p.out.history = append(p.out.history,
		message{conversation: body.Conversation, role: millrace.RoleUser, content: body.Payload.Text, taskID: id},
		message{conversation: body.Conversation, role: millrace.RoleAssistant, content: "yes", taskID: id})
	p.out.status[id] = "completed"
	if p.dropResult != nil && p.dropResult(len(p.keys)) {
		return
	}
	now := time.Now()
	p.pending = append(p.pending, millrace.TaskResult{
		TaskID: id, ConversationID: body.Conversation, Status: millrace.StatusCompleted, Attempts: 2,
		Usage: millrace.Usage{Calls: 1, InputTokens: 10, OutputTokens: 5}, StartedAt: now, FinishedAt: now.Add(time.Second),
	})
	select {
	case p.arrived <- struct{}{}:
	default:
	}
}

func (p *pipeline) poll(ctx context.Context) ([]millrace.TaskResult, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.arrived:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.pending
	p.pending = nil
	return got, nil
}

func (p *pipeline) messages(ctx context.Context, prefix string, yield func(message)) error {
	return p.out.messages(ctx, prefix, yield)
}

func (p *pipeline) completions(ctx context.Context, prefix string, yield func(taskID, status, problem string)) error {
	return p.out.completions(ctx, prefix, yield)
}

func runDemo(t *testing.T, p *pipeline, in *Input, change func(*Config)) (*Report, error) {
	t.Helper()
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	cfg := Config{
		Input: in, API: server.URL, Simulator: server.URL, Kafka: []kgo.Opt{kgo.SeedBrokers("unused")}, Postgres: "unused",
		Stall: 200 * time.Millisecond, Settle: 50 * time.Millisecond, GiveUp: 5 * time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.client.CloseIdleConnections)
	return d.run(t.Context(), p, func(context.Context) (int64, error) { return 0, errors.New("no group") }, p)
}

func TestFlawlessRunIsReported(t *testing.T) {
	p := newPipeline()
	in := Generate(50, 1)
	var shown bytes.Buffer
	r, err := runDemo(t, p, in, func(c *Config) {
		c.Out = &shown
		n := int64(0)
		c.Redelivered = func(context.Context) (int64, error) { n += 3; return n, nil }
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Tasks != in.total || r.Conversations != 50 {
		t.Fatalf("%s, %d tasks of %d, %d conversations: %q", r, r.Tasks, in.total, r.Conversations, r.Findings)
	}
	n := int64(in.total)
	if r.Usage != (millrace.Usage{Calls: n, InputTokens: 10 * n, OutputTokens: 5 * n}) || r.Retried != n || r.Redelivered != 3 || r.ProviderThrottled != n {
		t.Errorf("usage %+v, retried %d, redelivered %d, provider 429s %d", r.Usage, r.Retried, r.Redelivered, r.ProviderThrottled)
	}
	if len(r.Priorities) != 1 || r.Priorities[0].Turn.P99 != time.Second {
		t.Errorf("priorities %+v", r.Priorities)
	}
	if !strings.Contains(shown.String(), fmt.Sprintf("sent %d/%d  done %d", in.total, in.total, in.total)) {
		t.Errorf("shown: %s", shown.String())
	}
	var printed bytes.Buffer
	if err := r.Print(&printed); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(printed.String(), "\nlost=0 duplicate=0 reordered=0\n") {
		t.Errorf("printed:\n%s", printed.String())
	}
}

func TestRefusedPostsAreSentAgainInOrder(t *testing.T) {
	p := newPipeline()
	p.answer = func(w http.ResponseWriter, try int) bool {
		switch try % 5 {
		case 1:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			return false
		}
		return true
	}
	r, err := runDemo(t, p, Generate(20, 2), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() || r.Throttled == 0 {
		t.Errorf("%s with %d answers 429 and 503: %q", r, r.Throttled, r.Findings)
	}
}

// An answer that gets lost leaves the task accepted; the same key finds it.
func TestLostAnswerDoesNotDoubleATask(t *testing.T) {
	p := newPipeline()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		lose := strings.HasPrefix(r.URL.Path, "/v1") && p.tries%3 == 0
		p.mu.Unlock()
		if lose {
			p.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	r, err := runDemo(t, p, Generate(5, 3), func(c *Config) { c.API, c.Senders = server.URL, 1 })
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK() {
		t.Errorf("%s: %q", r, r.Findings)
	}
}

func TestMissingResultIsLostAfterTheStall(t *testing.T) {
	p := newPipeline()
	p.dropResult = func(n int) bool { return n == 3 }
	r, err := runDemo(t, p, Generate(5, 4), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.OK() || r.Lost != 1 || r.Duplicate != 0 || r.Reordered != 0 {
		t.Errorf("%s, want one lost", r)
	}
}

func TestRefusedTurnIsReportedAndNotLost(t *testing.T) {
	p := newPipeline()
	p.answer = func(w http.ResponseWriter, try int) bool {
		if try != 4 {
			return false
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"title":"The task is invalid","detail":"payload: too dull"}`)
		return true
	}
	r, err := runDemo(t, p, Generate(5, 5), nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.OK() || !r.Good() || r.Refused != 1 || !strings.Contains(r.FirstRefusal, "too dull") {
		t.Errorf("%s, refused %d: %s", r, r.Refused, r.FirstRefusal)
	}
}

func TestUnreachableAPIEndsTheRun(t *testing.T) {
	p := newPipeline()
	p.answer = func(w http.ResponseWriter, _ int) bool { w.WriteHeader(http.StatusInternalServerError); return true }
	_, err := runDemo(t, p, Generate(2, 6), func(c *Config) { c.GiveUp = 100 * time.Millisecond })
	if err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("got %v, want the API's answer", err)
	}
}

func TestConversationKeepsTheServiceItBeganWith(t *testing.T) {
	p := newPipeline()
	in, err := OpenInput("-", strings.NewReader(`{"conversation_id":"c","text":"1","services":["Banks_1"]}
x
{"conversation_id":"c","text":"2","services":["Events_1"]}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := runDemo(t, p, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Good() || r.OK() || r.BrokenLines != 1 {
		t.Errorf("%s, %d broken lines, want 1, which is not all right", r, r.BrokenLines)
	}
	for conversation, services := range p.services {
		if services != "Banks_1 Banks_1 " || !strings.HasPrefix(conversation, "demo-") || len(conversation) != prefixBytes+1 {
			t.Errorf("conversation %q was sent with services %q", conversation, services)
		}
	}
}

func TestNothingToSendIsNoSuccess(t *testing.T) {
	for name, input := range map[string]string{"empty": "", "broken": "garbage\n"} {
		in, err := OpenInput("-", strings.NewReader(input))
		if err != nil {
			t.Fatal(err)
		}
		r, err := runDemo(t, newPipeline(), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.OK() || !strings.Contains(strings.Join(r.Failures(), ", "), "no task was accepted") {
			t.Errorf("%s input: failures %q", name, r.Failures())
		}
	}
}

func TestSettingsAreJudgedTogether(t *testing.T) {
	_, err := New(Config{API: "nowhere", Senders: -1})
	for _, want := range []string{"input", "api", "kafka", "postgres", "senders"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s named", err, want)
		}
	}
}

func TestResultsAreReadFromTheEndCommittedOnly(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "millrace.results"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	seeds := kgo.SeedBrokers(cluster.ListenAddrs()...)
	producer, err := kgo.NewClient(seeds, kgo.TransactionalID("relay"), kgo.DefaultProduceTopic("millrace.results"))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	publish := func(end kgo.TransactionEndTry, ids ...string) {
		t.Helper()
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			b, err := json.Marshal(millrace.TaskResult{TaskID: id, ConversationID: "demo-x", Status: millrace.StatusCompleted})
			if err != nil {
				t.Fatal(err)
			}
			kind := millrace.EventTaskCompleted
			if id == "event" { // a handler's own
				kind, b = "mail.sent", []byte("not JSON")
			}
			r := kgo.KeySliceRecord([]byte(id), b)
			r.Headers = []kgo.RecordHeader{{Key: "ce_type", Value: []byte(kind)}}
			if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := producer.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	publish(kgo.TryCommit, "old")
	results, err := openResults(t.Context(), "millrace.results", "millrace.default", []kgo.Opt{seeds})
	if err != nil {
		t.Fatal(err)
	}
	defer results.close()
	publish(kgo.TryAbort, "aborted")
	publish(kgo.TryCommit, "new", "event", "newer", "new")

	got := newTally("demo-")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		batch, err := results.poll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got.add(batch)
		if _, events := got.done(); events == 3 {
			break
		}
	}
	if len(got.results) != 2 || got.results["new"].events != 2 || got.results["newer"].events != 1 {
		t.Errorf("got %+v", got.results)
	}
	if _, err := results.lag(t.Context()); err == nil {
		t.Error("a group that is not there has a lag")
	}
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: "millrace.results", Partition: 0, At: 0, LeaderEpoch: -1})
	if err := results.admin.CommitAllOffsets(t.Context(), "millrace.default", offsets); err != nil {
		t.Fatal(err)
	}
	if _, err := results.lag(t.Context()); err != nil {
		t.Errorf("lag: %v", err)
	}
	if _, err := openResults(t.Context(), "nowhere", "g", []kgo.Opt{seeds}); err == nil {
		t.Error("a topic that is not there was opened")
	}
}
