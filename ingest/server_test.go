package ingest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"millrace"
	"millrace/ingest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a server over a Kafka of its own.
type fixture struct {
	t       *testing.T
	cluster *kfake.Cluster
	http    *httptest.Server
	client  *http.Client
	server  *ingest.Server
	reg     *prometheus.Registry
	stop    func() // ends Run and returns when it has; fails the test on an error
}

func start(t *testing.T, change func(*ingest.Config)) *fixture {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1),
		kfake.SeedTopics(4, "millrace.tasks.high", "millrace.tasks.normal", "millrace.tasks.batch"),
		// The same bound that `millrace topics` sets.
		kfake.BrokerConfigs(map[string]string{"message.max.bytes": "2097152"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	producer, err := kgo.NewClient(append(ingest.ProducerOptions(), kgo.SeedBrokers(cluster.ListenAddrs()...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	reg := prometheus.NewRegistry()
	cfg := ingest.Config{Producer: producer, Metrics: reg}
	if change != nil {
		change(&cfg)
	}
	f := serve(t, cfg)
	f.cluster, f.reg = cluster, reg
	return f
}

// serve starts a server with a producer that is given.
func serve(t *testing.T, cfg ingest.Config) *fixture {
	t.Helper()
	server, err := ingest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	stopped := false
	f := &fixture{t: t, server: server, http: httptest.NewServer(server.Handler())}
	f.client = f.http.Client()
	f.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	f.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(func() {
		f.stop()
		f.http.Close()
	})
	return f
}

type response struct {
	status int
	header http.Header
	body   []byte
}

func (r *response) problem(t *testing.T) ingest.Problem {
	t.Helper()
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q, want a problem; body %s", ct, r.body)
	}
	var p ingest.Problem
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("decode problem %s: %v", r.body, err)
	}
	if p.Status != r.status || p.Title == "" || p.Detail == "" || p.Hint == "" || p.RequestID != r.header.Get("X-Request-Id") {
		t.Errorf("problem lacks something: %s", r.body)
	}
	return p
}

func (f *fixture) do(method, path string, body io.Reader, headers map[string]string) *response {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.http.URL+path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	res, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return &response{status: res.StatusCode, header: res.Header, body: b}
}

func (f *fixture) get(path string) *response { return f.do(http.MethodGet, path, nil, nil) }

func (f *fixture) submit(body string, headers ...string) *response {
	f.t.Helper()
	h := map[string]string{"Content-Type": "application/json"}
	for i := 0; i+1 < len(headers); i += 2 {
		h[headers[i]] = headers[i+1]
	}
	return f.do(http.MethodPost, "/v1/tasks", strings.NewReader(body), h)
}

func (f *fixture) mustSubmit(body string, headers ...string) ingest.Accepted {
	f.t.Helper()
	r := f.submit(body, headers...)
	if r.status != http.StatusAccepted {
		f.t.Fatalf("status %d: %s", r.status, r.body)
	}
	var a ingest.Accepted
	if err := json.Unmarshal(r.body, &a); err != nil {
		f.t.Fatal(err)
	}
	if got := r.header.Get("Location"); got != "/v1/tasks/"+a.TaskID {
		f.t.Errorf("location %q for task %s", got, a.TaskID)
	}
	return a
}

func (f *fixture) batch(body string, headers ...string) ([]ingest.BatchResult, *response) {
	f.t.Helper()
	h := map[string]string{"Content-Type": "application/x-ndjson"}
	for i := 0; i+1 < len(headers); i += 2 {
		h[headers[i]] = headers[i+1]
	}
	r := f.do(http.MethodPost, "/v1/tasks:batch", strings.NewReader(body), h)
	if r.status >= 300 {
		return nil, r
	}
	var results []ingest.BatchResult
	for dec := json.NewDecoder(bytes.NewReader(r.body)); dec.More(); {
		var one ingest.BatchResult
		if err := dec.Decode(&one); err != nil {
			f.t.Fatalf("decode %s: %v", r.body, err)
		}
		results = append(results, one)
	}
	return results, r
}

// log reads all tasks of a topic and returns them by partition.
func (f *fixture) log(priority millrace.Priority, want int) map[int32][]millrace.Task {
	f.t.Helper()
	topic := "millrace.tasks." + string(priority)
	consumer, err := kgo.NewClient(kgo.SeedBrokers(f.cluster.ListenAddrs()...), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		f.t.Fatal(err)
	}
	defer consumer.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	tasks := make(map[int32][]millrace.Task)
	for n := 0; n < want; {
		fetches := consumer.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			f.t.Fatalf("%d of %d tasks in %s: %v", n, want, topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			n++
			rec := millrace.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp, Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				rec.Headers = append(rec.Headers, millrace.Header{Key: h.Key, Value: h.Value})
			}
			task, err := millrace.TaskFromRecord(rec)
			if err != nil {
				f.t.Errorf("decode record: %v", err)
			}
			tasks[r.Partition] = append(tasks[r.Partition], task)
		})
	}
	return tasks
}

func (f *fixture) onlyTask(priority millrace.Priority) millrace.Task {
	f.t.Helper()
	for _, tasks := range f.log(priority, 1) {
		return tasks[0]
	}
	return millrace.Task{}
}

// ends counts the records of all priorities.
func (f *fixture) ends() int64 {
	var n int64
	for _, p := range millrace.DefaultPriorities() {
		for _, info := range f.cluster.PartitionInfos("millrace.tasks." + string(p)) {
			n += info.HighWatermark
		}
	}
	return n
}

func (f *fixture) metric(name string, labels ...string) float64 {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	var sum float64
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	metrics:
		for _, m := range family.GetMetric() {
			for i := 0; i+1 < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue metrics
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}
