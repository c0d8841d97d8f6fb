package embedded

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

func startKafka(t *testing.T, d *Dir) *Kafka {
	t.Helper()
	k, err := StartKafka(KafkaConfig{Dir: d, Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeService(t, k) })
	return k
}

func closeService(t *testing.T, s Service) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("close %s: %v", s.Name(), err)
	}
}

func kafkaClient(t *testing.T, k *Kafka, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(k.Addr())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func createTopic(t *testing.T, k *Kafka, topic string, partitions int32, configs map[string]*string) {
	t.Helper()
	cl := kafkaClient(t, k)
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), partitions, 1, configs, topic); err != nil {
		t.Fatal(err)
	}
	cl.Close()
}

// readValues reads a topic from its start until it has n values or nothing more
// comes.
func readValues(t *testing.T, k *Kafka, topic string, n int, opts ...kgo.Opt) []string {
	t.Helper()
	cl := kafkaClient(t, k, append([]kgo.Opt{
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100 * time.Millisecond),
	}, opts...)...)
	defer cl.Close()
	return poll(t, cl, n)
}

func poll(t *testing.T, cl *kgo.Client, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got []string
	for len(got) < n {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d of %d values: %v", len(got), n, got)
		}
		fetches.EachError(func(topic string, p int32, err error) { t.Fatalf("fetch %s/%d: %v", topic, p, err) })
		fetches.EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	return got
}

func produceTxn(t *testing.T, cl *kgo.Client, commit kgo.TransactionEndTry, records ...*kgo.Record) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), commit); err != nil {
		t.Fatal(err)
	}
}

func TestReadCommittedReaderSeesCommittedTransactionsOnly(t *testing.T) {
	k := startKafka(t, openTestDir(t))
	createTopic(t, k, "events", 1, nil)
	cl := kafkaClient(t, k, kgo.TransactionalID("relay-1"), kgo.DefaultProduceTopic("events"))
	produceTxn(t, cl, kgo.TryAbort, kgo.StringRecord("dropped"))
	produceTxn(t, cl, kgo.TryCommit, kgo.StringRecord("kept"))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), kgo.StringRecord("open")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	if got := readValues(t, k, "events", 1); !slices.Equal(got, []string{"kept"}) {
		t.Errorf("read committed: %q, want only what was committed", got)
	}
	got := readValues(t, k, "events", 3, kgo.FetchIsolationLevel(kgo.ReadUncommitted()))
	if want := []string{"dropped", "kept", "open"}; !slices.Equal(got, want) {
		t.Errorf("read uncommitted: %q, want %q", got, want)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Error(err)
	}
}

func TestSecondProducerIDFencesTheFirst(t *testing.T) {
	k := startKafka(t, openTestDir(t))
	createTopic(t, k, "events", 1, nil)
	old := kafkaClient(t, k, kgo.TransactionalID("shard-1"), kgo.DefaultProduceTopic("events"))
	if err := old.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := old.ProduceSync(t.Context(), kgo.StringRecord("of the old owner")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	owner := kafkaClient(t, k, kgo.TransactionalID("shard-1"), kgo.DefaultProduceTopic("events"))
	if _, _, err := owner.ProducerID(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := old.ProduceSync(t.Context(), kgo.StringRecord("too late")).FirstErr()
	if err == nil {
		err = old.EndTransaction(t.Context(), kgo.TryCommit)
	}
	if !errors.Is(err, kerr.ProducerFenced) && !errors.Is(err, kerr.InvalidProducerEpoch) {
		t.Errorf("the fenced producer got %v, want it fenced", err)
	}
	produceTxn(t, owner, kgo.TryCommit, kgo.StringRecord("of the new owner"))
	if got := readValues(t, k, "events", 1); !slices.Equal(got, []string{"of the new owner"}) {
		t.Errorf("read %q, want the new owner's record only", got)
	}
}

func TestCommitMetadataComesBack(t *testing.T) {
	d := openTestDir(t)
	k := startKafka(t, d)
	createTopic(t, k, "tasks", 3, nil)
	// As long as a real broker allows.
	metadata := strings.Repeat("x", 4096)
	commitOffset(t, k, "workers", "tasks", 2, 41, metadata)

	closeService(t, k)
	k = startKafka(t, d)
	cl := kafkaClient(t, k)
	offsets, err := kadm.NewClient(cl).FetchOffsets(t.Context(), "workers")
	if err != nil {
		t.Fatal(err)
	}
	o, ok := offsets.Lookup("tasks", 2)
	if !ok || o.At != 41 || o.Metadata != metadata {
		t.Errorf("after a restart: offset %d, %d bytes of metadata, want 41 and %d", o.At, len(o.Metadata), len(metadata))
	}
	if o, ok := offsets.Lookup("tasks", 0); ok && o.At >= 0 {
		t.Errorf("a partition without a commit has offset %d", o.At)
	}
}

func commitOffset(t *testing.T, k *Kafka, group, topic string, partition int32, at int64, metadata string) {
	t.Helper()
	cl := kafkaClient(t, k)
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: at, LeaderEpoch: -1, Metadata: metadata})
	if err := kadm.NewClient(cl).CommitAllOffsets(t.Context(), group, offsets); err != nil {
		t.Fatal(err)
	}
	cl.Close()
}

func TestRestartKeepsRecordsOffsetsAndAddress(t *testing.T) {
	d := openTestDir(t)
	k := startKafka(t, d)
	addr := k.Addr()
	createTopic(t, k, "tasks", 1, map[string]*string{"max.message.bytes": kadm.StringPtr("2097152")})
	cl := kafkaClient(t, k, kgo.DefaultProduceTopic("tasks"))
	if err := cl.ProduceSync(t.Context(), kgo.StringRecord("one"), kgo.StringRecord("two")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	id := topicID(t, k, "tasks")
	cl.Close()
	commitOffset(t, k, "workers", "tasks", 0, 1, "")
	closeService(t, k)

	k = startKafka(t, d)
	if k.Addr() != addr {
		t.Errorf("address %s after a restart, %s before", k.Addr(), addr)
	}
	if got := topicID(t, k, "tasks"); got != id {
		t.Errorf("topic id %s after a restart, %s before", got, id)
	}
	if got := readValues(t, k, "tasks", 1, kgo.ConsumerGroup("workers")); !slices.Equal(got, []string{"two"}) {
		t.Errorf("the group reads %q after a restart, want what it had not committed", got)
	}
	large := kafkaClient(t, k, kgo.DefaultProduceTopic("tasks"), kgo.ProducerBatchMaxBytes(2<<20))
	if err := large.ProduceSync(t.Context(), kgo.SliceRecord(make([]byte, 3<<19))).FirstErr(); err != nil {
		t.Errorf("a record of 1.5 MiB: %v", err)
	}
}

func topicID(t *testing.T, k *Kafka, topic string) kadm.TopicID {
	t.Helper()
	cl := kafkaClient(t, k)
	defer cl.Close()
	topics, err := kadm.NewClient(cl).ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return topics[topic].ID
}

// A copy of the running broker's folder is what a kill would leave behind.
func TestKilledBrokerAbortsWhatWasOpen(t *testing.T) {
	d := openTestDir(t)
	k := startKafka(t, d)
	createTopic(t, k, "events", 2, nil)
	// A clean restart first, so that there are snapshots for the kill to outdate.
	closeService(t, k)
	k = startKafka(t, d)
	cl := kafkaClient(t, k, kgo.TransactionalID("relay-1"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	record := func(p int32, v string) *kgo.Record {
		return &kgo.Record{Topic: "events", Partition: p, Value: []byte(v)}
	}
	produceTxn(t, cl, kgo.TryCommit, record(0, "a"), record(1, "b"))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), record(0, "open"), record(1, "open")).FirstErr(); err != nil {
		t.Fatal(err)
	}

	after := openTestDir(t)
	if err := os.CopyFS(filepath.Join(after.Path(), kafkaName), os.DirFS(filepath.Join(d.Path(), kafkaName))); err != nil {
		t.Fatal(err)
	}
	restarted := startKafka(t, after)
	next := kafkaClient(t, restarted, kgo.TransactionalID("relay-1"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	produceTxn(t, next, kgo.TryCommit, record(0, "c"))
	got := readValues(t, restarted, "events", 3)
	slices.Sort(got)
	if want := []string{"a", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("read %q after the kill, want %q", got, want)
	}
}

func TestCompactedTopicKeepsTheLastMarker(t *testing.T) {
	d := openTestDir(t)
	k := startKafka(t, d)
	createTopic(t, k, "markers", 1, map[string]*string{"cleanup.policy": kadm.StringPtr("compact")})
	cl := kafkaClient(t, k, kgo.TransactionalID("shard-1"), kgo.DefaultProduceTopic("markers"))
	for _, v := range []string{"1", "2", "3"} {
		produceTxn(t, cl, kgo.TryCommit, kgo.KeyStringRecord("shard-1", v))
	}
	produceTxn(t, cl, kgo.TryAbort, kgo.KeyStringRecord("shard-1", "aborted"))
	cl.Close()
	for range 2 { // starting compacts
		closeService(t, k)
		k = startKafka(t, d)
	}
	got := readValues(t, k, "markers", 1)
	if got[len(got)-1] != "3" {
		t.Errorf("read %q, want the last committed marker at the end", got)
	}
}

func TestCooperativeGroupTakesOverWhenAMemberLeaves(t *testing.T) {
	k := startKafka(t, openTestDir(t))
	createTopic(t, k, "tasks", 4, nil)
	member := func() *kgo.Client {
		return kafkaClient(t, k, kgo.ConsumerGroup("workers"), kgo.ConsumeTopics("tasks"),
			kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.HeartbeatInterval(100*time.Millisecond), kgo.FetchMaxWait(100*time.Millisecond))
	}
	first, second := member(), member()
	go first.PollFetches(t.Context())
	go second.PollFetches(t.Context())
	group := describeUntil(t, k, func(g kadm.DescribedGroup) bool {
		return g.State == "Stable" && len(g.Members) == 2 && assigned(g) == 4
	})
	if group.Protocol != "cooperative-sticky" {
		t.Errorf("protocol %q, want cooperative-sticky", group.Protocol)
	}
	second.Close()
	describeUntil(t, k, func(g kadm.DescribedGroup) bool {
		return g.State == "Stable" && len(g.Members) == 1 && assigned(g) == 4
	})
	first.Close()
}

func assigned(g kadm.DescribedGroup) int {
	n := 0
	g.AssignedPartitions().Each(func(string, int32) { n++ })
	return n
}

func describeUntil(t *testing.T, k *Kafka, ok func(kadm.DescribedGroup) bool) kadm.DescribedGroup {
	t.Helper()
	adm := kadm.NewClient(kafkaClient(t, k))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	var last kadm.DescribedGroup
	for {
		groups, err := adm.DescribeGroups(ctx, "workers")
		if err == nil {
			last = groups["workers"]
			if ok(last) {
				return last
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the group did not get there: %+v", last)
		case <-ticker.C:
		}
	}
}

func TestTopicsAreNotMadeByNamingThem(t *testing.T) {
	k := startKafka(t, openTestDir(t))
	cl := kafkaClient(t, k, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1))
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "typo", Value: []byte("x")}).FirstErr(); !errors.Is(err, kerr.UnknownTopicOrPartition) {
		t.Errorf("produce to a topic that nobody made: %v, want %v", err, kerr.UnknownTopicOrPartition)
	}
}

func TestAdministrationSeesLag(t *testing.T) {
	k := startKafka(t, openTestDir(t))
	createTopic(t, k, "tasks", 1, nil)
	cl := kafkaClient(t, k, kgo.DefaultProduceTopic("tasks"))
	for range 5 {
		if err := cl.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	commitOffset(t, k, "workers", "tasks", 0, 2, "")
	lag, err := kadm.NewClient(cl).Lag(t.Context(), "workers")
	if err != nil {
		t.Fatal(err)
	}
	if got := lag["workers"].Lag.Total(); got != 3 {
		t.Errorf("lag %d, want 3", got)
	}
}

func TestTakenKafkaPortIsNamed(t *testing.T) {
	k := startKafka(t, openTestDir(t))
	_, err := StartKafka(KafkaConfig{Dir: openTestDir(t), Addr: k.Addr()})
	if err == nil || !strings.Contains(err.Error(), "taken by another program") {
		t.Errorf("second broker on %s: %v, want a plain error", k.Addr(), err)
	}
}

func TestFailedWriteEndsTheBroker(t *testing.T) {
	l := &kafkaLog{failed: make(chan struct{})}
	l.Logf(kfake.LogLevelWarn, "OffsetCommit STALE: group=%s", "workers")
	select {
	case <-l.failed:
		t.Fatal("a harmless line ended the broker")
	default:
	}
	l.Logf(kfake.LogLevelWarn, "persist batch %s-%d: %v", "tasks", 1, &os.PathError{Op: "write", Path: "0.dat", Err: syscall.ENOSPC})
	l.Logf(kfake.LogLevelError, "endTx: failed to persist control batch for %s p%d pid %d", "tasks", int32(1), int64(7))
	<-l.failed
	if err := l.err(); !DiskFull(err) || !strings.Contains(err.Error(), "0.dat") {
		t.Errorf("got %v, want a full disk and the file", err)
	}
}
