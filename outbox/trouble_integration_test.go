//go:build integration

package outbox_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/outbox"
)

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := w.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func (w *world) count(t *testing.T, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := w.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func await(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	over := time.After(limit)
	for !ok() {
		select {
		case <-tick.C:
		case <-over:
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// TestOneLargeEventDoesNotTakeItsNeighboursAlong: brokers judge whole batches, and
// only the event that is too large by itself may become a dead letter.
func TestOneLargeEventDoesNotTakeItsNeighboursAlong(t *testing.T) {
	w := newWorld(t)
	cl, err := kgo.NewClient(w.kafka...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	limit := "30000"
	_, err = kadm.NewClient(cl).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: "max.message.bytes", Value: &limit}}, w.prefix+outbox.ResultsTopic)
	if err != nil {
		t.Fatal(err)
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	const events = 45 // two batches of the relay and a bit, each more than the topic takes
	for n := range events {
		m := message("key", n)
		m.Data = noise(10_000)
		if n == 7 {
			m.ID, m.Data = "large", noise(40_000)
		}
		w.append(t, m)
	}
	w.start(t)
	w.awaitEmpty(t)
	if got := len(w.read(t, events-1)["key"]); got != events-1 {
		t.Errorf("%d events, want all but one", got)
	}
	if n := w.count(t, `SELECT count(*) FROM millrace.dead_letters`); n != 1 {
		t.Errorf("%d dead letters, want the large event alone", n)
	}
	if n := w.count(t, `SELECT count(*) FROM millrace.dead_letters WHERE task_id = 'large'`); n != 1 {
		t.Error("the large event is not among the dead letters")
	}
}

// TestRowsThatCanBeNoRecordDoNotStopTheirShard inserts rows as somebody's own SQL
// may.
func TestRowsThatCanBeNoRecordDoNotStopTheirShard(t *testing.T) {
	w := newWorld(t)
	const insert = `INSERT INTO millrace.outbox (shard, topic, key, event_id, event_type, headers, data, at) VALUES ($1, $2, 'key', $3, 't', $4, 'x', now())`
	shard := outbox.Shard("key")
	w.exec(t, insert, shard, outbox.ResultsTopic, "headers", `[["name", "value"]]`)
	w.exec(t, insert, shard, outbox.MarkersTopic, "forged", nil)
	w.exec(t, insert, shard, "no topic at all!", "name", nil)
	for n := range 5 {
		w.append(t, message("key", n))
	}
	stop := w.start(t)
	w.awaitEmpty(t)
	stop()
	w.append(t, message("key", 5))
	w.start(t) // reads the marker
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 6), 6)
	if n := w.count(t, `SELECT count(*) FROM millrace.dead_letters WHERE reason = 'event_unpublishable' AND task_id IN ('headers', 'forged', 'name')`); n != 3 {
		t.Errorf("%d of 3 are dead letters", n)
	}
}

func TestAppendKeepsTheMarkersTopicToTheRelay(t *testing.T) {
	w := newWorld(t)
	m := message("key", 0)
	m.Topic = outbox.MarkersTopic
	err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, m) })
	if err == nil {
		t.Error("accepted")
	}
}

// TestAMarkerOfAnotherDatabaseDeletesNothing: the database is made anew and hands
// out the same ids again, while Kafka keeps the marker.
func TestAMarkerOfAnotherDatabaseDeletesNothing(t *testing.T) {
	w := newWorld(t)
	for n := range 10 {
		w.append(t, outbox.Message{ID: fmt.Sprint("old-", n), Type: "t", Topic: "results", Key: "key", Data: []byte("old")})
	}
	dead := w.deadOwner(t, "key", 10)
	if err := dead.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `TRUNCATE millrace.outbox RESTART IDENTITY`)
	for n := range 12 {
		w.append(t, message("key", n))
	}
	w.start(t)
	w.awaitEmpty(t)
	got := w.read(t, 22)["key"]
	for n := range 12 {
		if i := 10 + n; i >= len(got) || got[i] != strconv.Itoa(n) {
			t.Fatalf("published %v", got)
		}
	}
}

// TestALeaseWithoutAPublisherIsGivenBack: leases that a lost answer left behind
// must not keep their shards from everybody.
func TestALeaseWithoutAPublisherIsGivenBack(t *testing.T) {
	w := newWorld(t)
	r, err := outbox.NewRelay(w.config())
	if err != nil {
		t.Fatal(err)
	}
	w.exec(t, `INSERT INTO millrace.relays VALUES ($1, now() + interval '1 hour')`, uuid.New()) // another relay: half the shards are its share
	w.exec(t, `INSERT INTO millrace.relay_shards SELECT n, $1, now() + interval '1 hour' FROM generate_series(0, $2 - 1) AS n`, r.ID(), outbox.Shards)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	await(t, "half of the leases given back", 10*time.Second, func() bool {
		return w.count(t, `SELECT count(*) FROM millrace.relay_shards WHERE owner = $1`, r.ID()) == outbox.Shards/2
	})
}

// TestARelayThatLostItsLeaseDoesNotFenceItsSuccessor: an interrupted session finds
// out before it opens the next.
func TestARelayThatLostItsLeaseDoesNotFenceItsSuccessor(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.Lease = 40 * time.Second // it will not look at its leases again before the test is over
	reg := prometheus.NewRegistry()
	cfg.Metrics = reg
	r, err := outbox.NewRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	w.append(t, message("key", 0))
	w.awaitEmpty(t)
	w.exec(t, `UPDATE millrace.relay_shards SET owner = $1, leased_till = now() + interval '1 hour'`, uuid.New())
	successor := w.deadOwner(t, "key", 0)
	w.append(t, message("key", 1))
	await(t, "two interruptions", 10*time.Second, func() bool { return value(t, reg, "millrace_relay_interruptions_total") >= 2 })
	if err := successor.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Errorf("the successor was fenced: %v", err)
	}
}

func TestAShardThatIsGivenUpLeavesNoMetricBehind(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	reg := prometheus.NewRegistry()
	cfg.Metrics = reg
	r, err := outbox.NewRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.append(t, message("key", 0))
	w.awaitEmpty(t)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "millrace_relay_lag_") {
			t.Errorf("%d series of shards that nobody owns", len(f.GetMetric()))
		}
	}
	if n := value(t, reg, "millrace_relay_owned_shards"); n != 0 {
		t.Errorf("%v owned shards after the end", n)
	}
}

// value returns a counter or gauge without labels.
func value(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return 0
}
