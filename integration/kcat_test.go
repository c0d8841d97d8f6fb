//go:build integration

package integration

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"millrace"
)

// Any Kafka producer can send a task, without a header: kcat's record is done,
// under an id that follows from where it lies.
func TestKcatRecordIsProcessed(t *testing.T) {
	kcat, err := exec.LookPath("kcat")
	if err != nil {
		t.Fatalf("%v: kcat comes with make test-deps, or apt-get install kcat", err)
	}
	p := newPipeline(t, services{})
	p.startIngest()
	p.start("worker")
	send := func(line string, args ...string) {
		t.Helper()
		args = append([]string{"-P", "-b", strings.Join(p.brokers, ","), "-K:", "-t", p.topic("tasks.high")}, args...)
		command := exec.CommandContext(t.Context(), kcat, args...)
		command.Stdin = strings.NewReader(line)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("kcat: %v: %s", err, out)
		}
	}
	send("c1:{\"text\":\"hi\"}\n")
	p.awaitCompletions(1)
	// librdkafka spreads keys in a way of its own unless it is told Kafka's, so the
	// conversation's tasks now come from two partitions. They still add up.
	send("c1:{\"text\":\"hi again\"}\n", "-X", "topic.partitioner=murmur2_random")
	p.awaitCompletions(2)
	send("c1:not JSON, and not said to be\n")
	p.awaitCompletions(3)
	p.mustComplete(t, "c1")
	eventually(t, settlePatience, "the pipeline has settled", func() error { return p.settled(t.Context()) })

	e, err := p.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{"text":"hi"}`, `{"text":"hi again"}`, `not JSON, and not said to be`, `{"text":"still there?"}`}
	if n := len(e.results); n != len(want) {
		t.Errorf("%d results, want %d", n, len(want))
	}
	history := e.messages["c1"]
	if len(history) != 2*len(want) {
		t.Fatalf("the history is %v", history)
	}
	results := make(map[string]millrace.TaskResult)
	for _, r := range e.results {
		results[r.result.TaskID] = r.result
	}
	for i, content := range want {
		question, answer := history[2*i], history[2*i+1]
		if question.content != content || answer.content != content || question.taskID != answer.taskID {
			t.Errorf("turn %d is %v and %v, want %s", i, question, answer, content)
		}
		r := results[question.taskID]
		if r.Status != millrace.StatusCompleted || r.ConversationID != "c1" || !json.Valid(r.Result) {
			t.Errorf("the result of %s is %+v", content, r)
		}
	}
}
