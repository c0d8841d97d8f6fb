package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

func kafkaEnv(t *testing.T, opts ...kfake.Opt) []string {
	t.Helper()
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return []string{"MILLRACE_KAFKA_BROKERS=" + c.ListenAddrs()[0], "MILLRACE_PARTITIONS=2"}
}

func TestTopicsAreCreatedAndChecked(t *testing.T) {
	env := kafkaEnv(t)
	steps := []struct {
		args string
		code int
		want string
	}{
		{"topics check", 1, "topic millrace.tasks.high is missing: create it with millrace topics"},
		{"topics --dry-run", 0, "millrace.tasks.high     would be created: 2 partitions, replication 1"},
		{"topics", 0, "millrace.tasks.high     created: 2 partitions, replication 1"},
		{"topics", 0, "millrace.tasks.high     exists"},
		{"topics check", 0, "all topics are as they must be"},
	}
	for _, step := range steps {
		got := call(t, env, "", strings.Fields(step.args)...)
		if got.code != step.code || !strings.Contains(got.out+got.err, step.want) {
			t.Errorf("%s: want %d and %q, got %+v", step.args, step.code, step.want, got)
		}
	}
	if got := call(t, append(env, "MILLRACE_PARTITIONS=3"), "", "topics"); got.code != 1 || !strings.Contains(got.err, "has 2 partitions, MILLRACE_PARTITIONS is 3") {
		t.Errorf("mismatch: %+v", got)
	}
}

func TestLagIsPrintedPerTopicPerPartitionAndAsJSON(t *testing.T) {
	env := kafkaEnv(t)
	if got := call(t, env, "", "lag"); got.code != 1 || !strings.Contains(got.out, "unknown") || !strings.Contains(got.err, "the lag is unknown in 3 of 3") {
		t.Errorf("without topics: %+v", got)
	}
	if got := call(t, env, "", "topics"); got.code != 0 {
		t.Fatal(got.err)
	}
	produce(t, env, &kgo.Record{Topic: "millrace.tasks.batch", Key: []byte("c1")}, &kgo.Record{Topic: "millrace.tasks.batch", Key: []byte("c1")})
	if got := call(t, env, "", "lag"); got.code != 0 || !strings.Contains(got.out, "millrace.tasks.batch  │   2") {
		t.Errorf("got %+v", got)
	}
	if got := call(t, env, "", "lag", "--partitions"); got.code != 0 || strings.Count(got.out, "none") < 6 {
		t.Errorf("got %+v", got)
	}
	var g struct{ Partitions []struct{ Lag *int64 } }
	got := call(t, env, "", "lag", "--json")
	if err := json.Unmarshal([]byte(got.out), &g); err != nil || len(g.Partitions) != 6 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestTailPrintsResults(t *testing.T) {
	env := kafkaEnv(t, kfake.SeedTopics(2, "millrace.results"))
	produce(t, env,
		&kgo.Record{Topic: "millrace.results", Key: []byte("c1"), Value: []byte(`{"task_id":"t1","conversation_id":"c1","status":"completed","attempts":1,` +
			`"result":{"a": 1},"usage":{"calls":1,"input_tokens":5,"output_tokens":7},"started_at":"2026-01-02T03:04:05Z","finished_at":"2026-01-02T03:04:06.5Z"}`)},
		&kgo.Record{Topic: "millrace.results", Key: []byte("c1"), Value: []byte(`{"task_id":"t2","conversation_id":"c1","status":"failed","attempts":5,"error":"no"}`)},
		&kgo.Record{Topic: "millrace.results", Key: []byte("c1"), Value: []byte("what?")},
		&kgo.Record{Topic: "millrace.results", Key: []byte("c2"), Value: []byte(`{"task_id":"t3","conversation_id":"c2","status":"completed"}`)},
	)
	got := call(t, env, "", "tail", "--from-start", "--conversation", "c1", "--count", "3")
	lines := strings.Split(got.out, "\n")
	if got.code != 0 || len(lines) != 4 ||
		!strings.HasSuffix(lines[0], `completed  c1  t1  attempts=1  took=1.5s  tokens=5+7  {"a":1}`) ||
		!strings.HasSuffix(lines[1], `failed     c1  t2  attempts=5  took=-  error="no"`) ||
		!strings.Contains(lines[2], `not a result: partition`) {
		t.Errorf("got %+v", got)
	}
	got = call(t, env, "", "tail", "--from-start", "--conversation", "c1", "--count", "3", "--json")
	if !strings.HasPrefix(got.out, `{"task_id":"t1","conversation_id":"c1",`) || !strings.HasSuffix(got.out, "\n\"what?\"\n") {
		t.Errorf("got %+v", got)
	}
	if got := call(t, env, "", "tail", "--from-start", "--conversation", "c2", "--count", "1"); !strings.Contains(got.out, "t3") {
		t.Errorf("got %+v", got)
	}
	if got := call(t, append(env, "MILLRACE_TOPIC_PREFIX=other."), "", "tail"); got.code != 1 || !strings.Contains(got.err, "millrace topics") {
		t.Errorf("missing topic: %+v", got)
	}
}

func TestTailStartsWithWhatComesNext(t *testing.T) {
	env := kafkaEnv(t, kfake.SeedTopics(1, "millrace.results"))
	produce(t, env, &kgo.Record{Topic: "millrace.results", Value: []byte(`{"task_id":"old","status":"completed"}`)})
	c := &cli{in: strings.NewReader(""), out: &bytes.Buffer{}, err: io.Discard, environ: env}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.tail(ctx, tailFlags{count: 1}) }()
	for { // until tail has begun to read
		produce(t, env, &kgo.Record{Topic: "millrace.results", Value: []byte(`{"task_id":"new","status":"completed"}`)})
		select {
		case err := <-done:
			if out := c.out.(*bytes.Buffer).String(); err != nil || !strings.Contains(out, "new") || strings.Contains(out, "old") {
				t.Errorf("got %q, %v", out, err)
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func produce(t *testing.T, env []string, records ...*kgo.Record) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.TrimPrefix(env[0], "MILLRACE_KAFKA_BROKERS=")))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}
