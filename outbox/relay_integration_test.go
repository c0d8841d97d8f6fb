//go:build integration

package outbox_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/testenv"
	"millrace/outbox"
	"millrace/statestore"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// world is a database and a set of topics of the test's own.
type world struct {
	pool   *pgxpool.Pool
	kafka  []kgo.Opt
	prefix string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ctx := t.Context()
	pool, err := pgxpool.New(ctx, testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := statestore.Migrate(ctx, conn.Conn()); err != nil {
		t.Fatal(err)
	}
	w := &world{pool: pool, kafka: []kgo.Opt{kgo.SeedBrokers(testenv.Kafka(t)...)}, prefix: testenv.TopicPrefix(t)}
	cl, err := kgo.NewClient(w.kafka...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	for topic, partitions := range map[string]int32{outbox.ResultsTopic: 4, outbox.MarkersTopic: outbox.Shards} {
		if _, err := adm.CreateTopic(ctx, partitions, 1, nil, w.prefix+topic); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) config() outbox.RelayConfig {
	return outbox.RelayConfig{
		Pool: w.pool, Kafka: w.kafka, TopicPrefix: w.prefix, BatchSize: 20,
		PollInterval: 10 * time.Millisecond, Lease: 2 * time.Second,
	}
}

func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	return w.startWith(t, w.config())
}

func (w *world) startWith(t *testing.T, cfg outbox.RelayConfig) (stop func()) {
	t.Helper()
	r, err := outbox.NewRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("relay: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// transactions counts the transactional ids under the world's prefix.
func (w *world) transactions(t *testing.T) int {
	t.Helper()
	cl, err := kgo.NewClient(w.kafka...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	all, err := kadm.NewClient(cl).ListTransactions(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, id := range all.TransactionalIDs() {
		if strings.HasPrefix(id, w.prefix) {
			n++
		}
	}
	return n
}

func (w *world) append(t *testing.T, messages ...outbox.Message) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, messages...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func message(key string, n int) outbox.Message {
	return outbox.Message{
		ID: fmt.Sprintf("%s-%d", key, n), Type: "test", Key: key,
		ContentType: "text/plain", Data: []byte(strconv.Itoa(n)),
	}
}

// read returns the results topic as a read_committed reader sees it, once it
// holds n records and has held no more for a moment.
func (w *world) read(t *testing.T, n int) map[string][]string {
	t.Helper()
	byKey := w.readSome(t, n)
	got := 0
	for _, values := range byKey {
		got += len(values)
	}
	if got != n {
		t.Errorf("%d records in the results topic, want %d", got, n)
	}
	return byKey
}

// readSome is read for when there may be more than n.
func (w *world) readSome(t *testing.T, n int) map[string][]string {
	t.Helper()
	cl, err := kgo.NewClient(append(w.kafka,
		kgo.ConsumeTopics(w.prefix+outbox.ResultsTopic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(100*time.Millisecond),
	)...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	byKey := make(map[string][]string)
	got := 0
	limit := time.Now().Add(40 * time.Second)
	for {
		wait := time.Until(limit)
		if got >= n {
			wait = time.Second // long enough for a second copy to show
		}
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		fetches := cl.PollFetches(ctx)
		over := ctx.Err() != nil
		cancel()
		fetches.EachRecord(func(r *kgo.Record) {
			got++
			byKey[string(r.Key)] = append(byKey[string(r.Key)], string(r.Value))
		})
		if over {
			break
		}
	}
	return byKey
}

func checkOrder(t *testing.T, byKey map[string][]string, want int) {
	t.Helper()
	for key, values := range byKey {
		if len(values) != want {
			t.Errorf("%s: %d events, want %d", key, len(values), want)
		}
		for i, v := range values {
			if v != strconv.Itoa(i) {
				t.Errorf("%s: event %d is %s", key, i, v)
				break
			}
		}
	}
}

func (w *world) awaitEmpty(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		var n int
		if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM millrace.outbox`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%d rows left in the outbox after 30 s", n)
		}
	}
}

func TestRelayPublishesEveryEventOnceInOrder(t *testing.T) {
	w := newWorld(t)
	w.start(t)
	const keys, events = 10, 50
	for n := range events {
		for k := range keys {
			w.append(t, message(fmt.Sprintf("key-%d", k), n))
		}
	}
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, keys*events), events)
}

func TestRelaysShareTheShardsAndTakeOver(t *testing.T) {
	w := newWorld(t)
	stops := []func(){w.start(t), w.start(t)}
	const keys, rounds = 16, 40
	for n := range rounds {
		for k := range keys {
			w.append(t, message(fmt.Sprintf("key-%d", k), n))
		}
		if n%10 == 9 { // one leaves, another comes, while rows flow
			stops[0]()
			stops = append(stops[1:], w.start(t))
		}
	}
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, keys*rounds), rounds)
}

// TestTakeoverKnowsWhatADeadRelayPublished plays a relay that died after its
// Kafka transaction committed and before it deleted the rows.
func TestTakeoverKnowsWhatADeadRelayPublished(t *testing.T) {
	w := newWorld(t)
	for n := range 30 {
		w.append(t, message("key", n))
	}
	dead := w.deadOwner(t, "key", 20)
	if err := dead.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 30), 30)
}

// TestTakeoverDropsWhatADeadRelayLeftOpen plays a relay that died in the middle
// of its transaction, and then turns out to be a zombie that tries to commit it.
func TestTakeoverDropsWhatADeadRelayLeftOpen(t *testing.T) {
	w := newWorld(t)
	for n := range 30 {
		w.append(t, message("key", n))
	}
	zombie := w.deadOwner(t, "key", 20)
	w.start(t)
	w.awaitEmpty(t)
	if err := zombie.EndTransaction(t.Context(), kgo.TryCommit); err == nil {
		t.Error("the fenced relay could still commit")
	}
	checkOrder(t, w.read(t, 30), 30)
}

// deadOwner publishes the first n rows of a key's shard in a transaction that it
// leaves open.
func (w *world) deadOwner(t *testing.T, key string, n int) *kgo.Client {
	t.Helper()
	shard := outbox.Shard(key)
	cl, err := kgo.NewClient(append(w.kafka,
		kgo.TransactionalID(w.prefix+"relay."+strconv.Itoa(shard)),
		kgo.RecordPartitioner(kgo.BasicConsistentPartitioner(func(topic string) func(*kgo.Record, int) int {
			keyed := kgo.StickyKeyPartitioner(nil).ForTopic(topic)
			return func(r *kgo.Record, partitions int) int {
				if topic == w.prefix+outbox.MarkersTopic {
					return shard
				}
				return keyed.Partition(r, partitions)
			}
		})),
	)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	rows, err := w.pool.Query(t.Context(), `SELECT id, event_id, data FROM millrace.outbox WHERE shard = $1 ORDER BY id LIMIT $2`, shard, n)
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		ID    int64
		Event string
		Data  []byte
	}
	published, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		t.Fatal(err)
	}
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	var (
		ids    []int64
		events []string
	)
	for _, r := range published {
		ids, events = append(ids, r.ID), append(events, r.Event)
		err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: w.prefix + outbox.ResultsTopic, Key: []byte(key), Value: r.Data}).FirstErr()
		if err != nil {
			t.Fatal(err)
		}
	}
	marker := outbox.MarkerRecord(w.prefix+outbox.MarkersTopic, shard, ids, events)
	if err := cl.ProduceSync(t.Context(), marker).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return cl
}

func TestAnEventThatKafkaRefusesDoesNotStopItsShard(t *testing.T) {
	w := newWorld(t)
	bad := message("key", 0)
	bad.ID, bad.Topic = "poison", "nobody.made.this"
	w.append(t, bad)
	for n := range 5 {
		w.append(t, message("key", n))
	}
	w.start(t)
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 5), 5)
	var reason string
	err := w.pool.QueryRow(t.Context(), `SELECT reason FROM millrace.dead_letters WHERE task_id = 'poison'`).Scan(&reason)
	if err != nil || reason != "event_unpublishable" {
		t.Errorf("dead letter of the refused event: %q, %v", reason, err)
	}
}

func TestAppendKeepsCommitOrderWithinAKey(t *testing.T) {
	w := newWorld(t)
	var (
		wg        sync.WaitGroup
		mu        sync.Mutex
		committed []int
	)
	for n := range 40 {
		wg.Go(func() {
			tx, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if err := outbox.Append(t.Context(), tx, message("key", n)); err != nil {
				t.Error(err)
				return
			}
			// The lock of the key is held, so this order is the commit order.
			mu.Lock()
			committed = append(committed, n)
			mu.Unlock()
			if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.start(t)
	w.awaitEmpty(t)
	got := w.read(t, 40)["key"]
	for i, n := range committed {
		if i < len(got) && got[i] != strconv.Itoa(n) {
			t.Fatalf("published %v, committed %v", got, committed)
		}
	}
}
