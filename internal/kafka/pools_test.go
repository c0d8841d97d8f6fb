package kafka

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestTopicsOfOtherPoolsAreFound(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1,
		"millrace.tasks.high", "millrace.tasks.normal", "millrace.tasks.batch", "millrace.results", "other.tasks.low")),
		"MILLRACE_PRIORITIES=high,normal")
	others, err := OtherTaskTopics(t.Context(), kadm.NewClient(client(t, s)), s)
	if got := fmt.Sprint(others); err != nil || got != "[millrace.tasks.batch]" {
		t.Errorf("got %s, %v", got, err)
	}
	s = load(t, cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "millrace.tasks.high", "millrace.tasks.normal", "millrace.tasks.batch")))
	if others, err := OtherTaskTopics(t.Context(), kadm.NewClient(client(t, s)), s); err != nil || len(others) != 0 {
		t.Errorf("a pool that serves all: got %v, %v", others, err)
	}
}

func TestTheLagOfTasksIsThatOfThePoolThatServesThem(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(2, "millrace.tasks.high", "millrace.tasks.batch")),
		"MILLRACE_PRIORITIES=high,batch")
	cl := client(t, s, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	adm := kadm.NewClient(cl)
	for range 5 {
		for _, topic := range s.TaskTopics() {
			for partition := range int32(2) {
				if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: partition}).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	totals := func() string {
		t.Helper()
		g, err := TaskLag(t.Context(), adm, s, s.TaskTopics()...)
		if err != nil {
			t.Fatal(err)
		}
		high, known1 := g.Total("millrace.tasks.high")
		batch, known2 := g.Total("millrace.tasks.batch")
		return fmt.Sprint(high, known1, batch, known2)
	}
	if got := totals(); got != "10 true 10 true" {
		t.Errorf("before any commit: %s", got)
	}
	for group, commit := range map[string]kadm.Offset{
		"millrace.chat":    {Topic: "millrace.tasks.high", Partition: 0, At: 5},
		"millrace.bulk":    {Topic: "millrace.tasks.batch", Partition: 1, At: 2},
		"millrace.default": {Topic: "millrace.tasks.batch", Partition: 1, At: 1}, // that of an earlier time
		"audit":            {Topic: "millrace.tasks.high", Partition: 1, At: 5},
	} {
		offsets := kadm.Offsets{}
		offsets.Add(commit)
		if err := adm.CommitAllOffsets(t.Context(), group, offsets); err != nil {
			t.Fatal(err)
		}
	}
	if got := totals(); got != "5 true 8 true" {
		t.Errorf("got %s, want the lag of each priority's own pool", got)
	}
}
