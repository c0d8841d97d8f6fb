package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace"
	"millrace/ingest"
	"millrace/internal/settings"
	"millrace/statestore"
)

func letter(id int64, task, conversation string, headers ...millrace.Header) statestore.DeadLetter {
	return statestore.DeadLetter{
		DeadLetterEntry: millrace.DeadLetterEntry{ID: id, TaskID: task, ConversationID: conversation},
		Priority:        millrace.Normal,
		Record:          millrace.Record{Topic: "m.tasks.normal", Key: []byte(conversation), Value: []byte("v " + task), Headers: headers},
	}
}

func header(key, value string) millrace.Header {
	return millrace.Header{Key: key, Value: []byte(value)}
}

// a redrive of an installation with these topics.
func newRedrive(topics ...string) *redrive {
	r := &redrive{settings: &settings.Settings{TopicPrefix: "m."}, topics: make(kadm.TopicDetails)}
	for _, topic := range topics {
		r.topics[topic] = kadm.TopicDetail{Topic: topic}
	}
	return r
}

func TestARedrivenRecordIsTheOldOneUnderTheTasksIDAndTheNextRedrive(t *testing.T) {
	tests := map[string]struct {
		headers []millrace.Header
		redrive int
		want    string
	}{
		"bare":             {nil, 0, "ce_id=t1 ce_redrive=1"},
		"named":            {[]millrace.Header{header("ce_id", "t1"), header("ce_type", "chat"), header("x", "\xff")}, 0, "ce_id=t1 ce_type=chat x=\xff ce_redrive=1"},
		"redriven before":  {[]millrace.Header{header("ce_redrive", "4"), header("ce_id", "t1"), header("traceparent", "tp")}, 4, "ce_redrive=5 ce_id=t1 traceparent=tp"},
		"headers repeated": {[]millrace.Header{header("ce_id", "t0"), header("a", "1"), header("ce_id", "t1"), header("a", "2")}, 0, "ce_id=t1 a=1 a=2 ce_redrive=1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := letter(1, "t1", "c1", test.headers...)
			d.Redrive = test.redrive
			before := fmt.Sprint(d.Record.Headers)
			got, err := newRedrive("m.tasks.normal").record(&d)
			if err != nil {
				t.Fatal(err)
			}
			var pairs []string
			in := millrace.Record{Key: got.Key, Value: got.Value}
			for _, h := range got.Headers {
				pairs = append(pairs, h.Key+"="+string(h.Value))
				in.Headers = append(in.Headers, millrace.Header(h))
			}
			if s := strings.Join(pairs, " "); s != test.want || string(got.Key) != "c1" || string(got.Value) != "v t1" || got.Topic != "m.tasks.normal" || !got.Timestamp.IsZero() {
				t.Errorf("got %q in %+v, want %q", s, got, test.want)
			}
			task, err := millrace.TaskFromRecord(in)
			if err != nil || task.Key() != (millrace.Key{ID: "t1", Redrive: test.redrive + 1}) {
				t.Errorf("a worker reads %+v, %v", task.Key(), err)
			}
			if fmt.Sprint(d.Record.Headers) != before {
				t.Error("the dead letter was changed")
			}
		})
	}
}

func TestWhatCanNeverRunIsRefusedWithTheReason(t *testing.T) {
	null := letter(1, "t", "c")
	null.Record.Value = nil
	key := letter(1, "t", "c")
	key.Record.Key = []byte{0xff}
	gone := letter(1, "t", "c")
	gone.Record.Topic, gone.Priority = "m.tasks.urgent", "urgent"
	tests := map[string]struct {
		letter statestore.DeadLetter
		want   string
	}{
		"null value":     {null, "null_value"},
		"invalid key":    {key, "invalid_key"},
		"invalid header": {letter(1, "t", "c", header("ce_id", "")), "invalid_header"},
		"invalid JSON":   {letter(1, "t", "c", header("content-type", "application/json")), "invalid_json"},
		"past deadline":  {letter(1, "t", "c", header("ce_deadline", "2001-01-01T00:00:00Z")), "its deadline passed at 2001"},
		"no topic":       {gone, `no topic m.tasks.urgent, nor one of this installation for priority "urgent"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var refused *refusedError
			if _, err := newRedrive("m.tasks.normal").record(&test.letter); !errors.As(err, &refused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	late := letter(1, "t", "c", header("ce_deadline", "2001-01-01T00:00:00Z"))
	r := newRedrive("m.tasks.normal")
	r.noDeadline = true
	if got, err := r.record(&late); err != nil || len(got.Headers) != 2 {
		t.Errorf("without its deadline: %+v, %v", got, err)
	}
}

func TestARecordGoesToItsTopicOrElseToThatOfItsPriority(t *testing.T) {
	tests := []struct{ from, want string }{
		{"m.tasks.normal", "m.tasks.normal"},
		{"m.tasks.batch", "m.tasks.batch"},
		{"m.tasks.gone", "m.tasks.normal"},
		{"old.tasks.normal", "m.tasks.normal"}, // there, but nobody reads it
	}
	for _, test := range tests {
		d := letter(1, "t", "c")
		d.Record.Topic = test.from
		got, err := newRedrive("m.tasks.normal", "m.tasks.batch", "old.tasks.normal").record(&d)
		if err != nil || got.Topic != test.want {
			t.Errorf("from %s: %+v, %v, want %s", test.from, got, err, test.want)
		}
	}
}

func TestNothingOvertakesALetterThatKafkaDoesNotTake(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "m.tasks.normal"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	// Kafka has no room for what comes second in its conversation.
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		produce := req.(*kmsg.ProduceRequest)
		if !strings.Contains(string(produce.Topics[0].Partitions[0].Records), "v a2") {
			return nil, nil, false
		}
		resp := produce.ResponseKind().(*kmsg.ProduceResponse)
		resp.Topics = []kmsg.ProduceResponseTopic{{
			Topic: produce.Topics[0].Topic, TopicID: produce.Topics[0].TopicID,
			Partitions: []kmsg.ProduceResponseTopicPartition{{ErrorCode: kerr.PolicyViolation.Code}},
		}}
		return resp, nil, true
	})
	cl, err := kgo.NewClient(append(ingest.ProducerOptions(), kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	r := newRedrive("m.tasks.normal")
	r.client = cl
	null := letter(3, "a0", "a")
	null.Record.Value = nil
	_, errs := r.send(t.Context(), []statestore.DeadLetter{
		null, letter(4, "a1", "a"), letter(5, "b1", "b"), letter(6, "a2", "a"), letter(7, "u1", ""), letter(8, "a3", "a"),
	})
	var refused *refusedError
	if !errors.As(errs[0], &refused) || errs[1] != nil || errs[2] != nil || !errors.Is(errs[3], kerr.PolicyViolation) || errs[4] != nil || !errors.Is(errs[5], errNotTried) {
		t.Errorf("got %v", errs)
	}
	if got := values(t, cl, 3); !slices.Equal(got, []string{"v a1", "v b1", "v u1"}) {
		t.Errorf("Kafka has %v", got)
	}
}

func TestARedriveThatIsStoppedFinishesWhatItHasBegun(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "m.tasks.normal"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cancel()
		return nil, nil, false
	})
	cl, err := kgo.NewClient(append(ingest.ProducerOptions(), kgo.SeedBrokers(cluster.ListenAddrs()...))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	r := newRedrive("m.tasks.normal")
	r.client = cl
	_, errs := r.send(ctx, []statestore.DeadLetter{letter(1, "a1", "a"), letter(2, "a2", "a")})
	if errs[0] != nil || !errors.Is(errs[1], errNotTried) {
		t.Errorf("got %v", errs)
	}
}

// values returns the values of the first n records of the topic, sorted.
func values(t *testing.T, producer *kgo.Client, n int) []string {
	t.Helper()
	seeds, _ := producer.OptValue(kgo.SeedBrokers).([]string)
	cl, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.ConsumeTopics("m.tasks.normal"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out []string
	for len(out) < n && ctx.Err() == nil {
		for record := range cl.PollFetches(ctx).RecordsAll() {
			out = append(out, string(record.Value))
		}
	}
	slices.Sort(out)
	return out
}
