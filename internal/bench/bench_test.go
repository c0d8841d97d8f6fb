package bench

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"millrace"
	"millrace/internal/settings"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestResultIsOneLineOfJSON(t *testing.T) {
	for name, tc := range map[string]struct {
		result Result
		want   string
	}{
		"at least, met":    {AtLeast("a", 20, "records/s", 10), `{"name":"a","value":20,"unit":"records/s","bound":10,"ratio":2,"ok":true}`},
		"at least, missed": {AtLeast("a", 5, "records/s", 10), `{"name":"a","value":5,"unit":"records/s","bound":10,"ratio":0.5,"ok":false}`},
		"at most, met":     {AtMost("a", 5, "ms", 10), `{"name":"a","value":5,"unit":"ms","bound":10,"ratio":0.5,"ok":true}`},
		"at most, missed":  {AtMost("a", 20, "ms", 10), `{"name":"a","value":20,"unit":"ms","bound":10,"ratio":2,"ok":false}`},
		"without a bound":  {Plain("a", 5, "ms"), `{"name":"a","value":5,"unit":"ms","bound":null,"ratio":null,"ok":true}`},
		"bound of zero":    {AtMost("a", 0, "ms", 0), `{"name":"a","value":0,"unit":"ms","bound":0,"ratio":null,"ok":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := tc.result.WriteJSON(&out); err != nil {
				t.Fatal(err)
			}
			if out.String() != tc.want+"\n" {
				t.Errorf("got %swant %s", out.String(), tc.want)
			}
		})
	}
}

func TestTableMarksWhatMissedItsBound(t *testing.T) {
	var out bytes.Buffer
	if err := WriteTable(&out, []Result{AtLeast("slow", 5, "records/s", 10), Plain("free", 1, "ms")}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if strings.Contains(line, "slow") && !strings.Contains(line, "NO") || strings.Contains(line, "free") && strings.Contains(line, "NO") {
			t.Errorf("wrong mark: %s", line)
		}
	}
}

func TestLoadGoesToLoopbackOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		variable string
		ok       bool
	}{
		"nothing set":        {"", true},
		"Kafka by name":      {"MILLRACE_KAFKA_BROKERS=localhost:9092", true},
		"Kafka elsewhere":    {"MILLRACE_KAFKA_BROKERS=127.0.0.1:9092,192.0.2.1:9092", false},
		"Redis over IPv6":    {"MILLRACE_REDIS_URL=redis://[::1]:6379/0", true},
		"Redis elsewhere":    {"MILLRACE_REDIS_URL=redis://redis.example:6379/0", false},
		"Redis socket":       {"MILLRACE_REDIS_URL=unix:///run/redis.sock", true},
		"Postgres socket":    {"MILLRACE_POSTGRES_URL=postgres:///millrace?host=/run/postgresql", true},
		"Postgres elsewhere": {"MILLRACE_POSTGRES_URL=postgres://millrace@127.0.0.1,192.0.2.1/millrace", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := settings.Load([]string{tc.variable}, settings.RoleWorker)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkLoopback(&s); (err == nil) != tc.ok {
				t.Errorf("error %v, want none: %v", err, tc.ok)
			}
		})
	}
}

func TestEngineRefusesOtherMachinesBeforeItSendsAnything(t *testing.T) {
	s, err := settings.Load([]string{"MILLRACE_KAFKA_BROKERS=192.0.2.1:9092"}, settings.RoleWorker)
	if err != nil {
		t.Fatal(err)
	}
	err = Engine(t.Context(), EngineConfig{Env: Env{Settings: s}}, func(Result) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("error %v, want one about loopback", err)
	}
}

func TestUnknownBenchmarkIsRefused(t *testing.T) {
	if err := (&EngineConfig{Only: []string{"noop", "nonsense"}}).Validate(); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v, want one that names it", err)
	}
	if err := (&EngineConfig{Only: EngineNames()}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i+1) * time.Millisecond
	}
	for _, tc := range []struct {
		sorted []time.Duration
		q      float64
		want   float64
	}{
		{nil, 0.5, 0},
		{hundred[:1], 0.99, 1},
		{hundred, 0.50, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := quantile(tc.sorted, tc.q); got != tc.want {
			t.Errorf("quantile %v of %d is %v, want %v", tc.q, len(tc.sorted), got, tc.want)
		}
	}
}

func TestHotKeysShareAPartition(t *testing.T) {
	keys := keysOf(50, 3, partitions)
	partitioner := kgo.StickyKeyPartitioner(nil).ForTopic("")
	for _, key := range keys {
		if got := partitioner.Partition(&kgo.Record{Key: []byte(key)}, partitions); got != 3 {
			t.Errorf("key %s goes to partition %d, want 3", key, got)
		}
	}
	if slices.Sort(keys); len(slices.Compact(keys)) != 50 {
		t.Error("keys repeat")
	}
}

func TestTaskThatStartsBeforeItsAcknowledgementHasNotWaited(t *testing.T) {
	client, err := kgo.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p, err := newPaced(client, "topic", 1, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	random := rand.NewChaCha8([32]byte{})
	for i, times := range [][3]int64{{1, 2, 3}, {10, 50, 40}, {10, 20, 90}} {
		p.sent[i].Store(times[0])
		p.acked[i].Store(times[1])
		p.starts[i].Store(times[2])
		if got := valueIndex(newValue(random, i)); got != i {
			t.Errorf("a value names task %d, want %d", got, i)
		}
	}
	sent, available := p.waits(1)
	if want := []time.Duration{30, 80}; !slices.Equal(sent, want) {
		t.Errorf("waits since sent %v, want %v", sent, want)
	}
	if want := []time.Duration{0, 70}; !slices.Equal(available, want) {
		t.Errorf("waits since available %v, want %v", available, want)
	}
}

func TestAllTasksHaveStartedOnce(t *testing.T) {
	client, err := kgo.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p, err := newPaced(client, "topic", 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	random := rand.NewChaCha8([32]byte{})
	for _, i := range []int{0, 0, 1, 1} { // a task that runs twice has started once
		p.started(&millrace.Task{Payload: newValue(random, i)})
		select {
		case <-p.allStarted:
			if i == 0 {
				t.Fatal("one of two has started, and all have")
			}
		default:
			if i == 1 {
				t.Fatal("both have started, and not all have")
			}
		}
	}
}

func TestAwaitSaysWhatDidNotHappen(t *testing.T) {
	err := await(t.Context(), make(chan struct{}), time.Millisecond, "no turn")
	if err == nil || !strings.HasPrefix(err.Error(), "no turn") {
		t.Errorf("error %v, want what did not happen", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := await(ctx, make(chan struct{}), time.Minute, "no turn"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}
