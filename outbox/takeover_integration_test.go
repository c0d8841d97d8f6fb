//go:build integration

package outbox_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/outbox"
)

// onlyShard leaves a relay that is started next one shard: somebody else holds the
// others.
func (w *world) onlyShard(t *testing.T, shard int) {
	t.Helper()
	w.exec(t, `INSERT INTO millrace.relay_shards SELECT n, $1, now() + interval '1 hour' FROM generate_series(0, $2 - 1) AS n WHERE n <> $3`,
		uuid.New(), outbox.Shards, shard)
}

// TestWhatIsPublishedAndCannotBeDeletedIsNotPublishedAgain keeps the relay from
// deleting rows, which is as if it died between the two commits time and again.
func TestWhatIsPublishedAndCannotBeDeletedIsNotPublishedAgain(t *testing.T) {
	w := newWorld(t)
	w.exec(t, `CREATE TABLE public.frozen ()`)
	w.exec(t, `CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF to_regclass('public.frozen') IS NOT NULL THEN RAISE EXCEPTION 'frozen'; END IF; RETURN OLD; END $$`)
	w.exec(t, `CREATE TRIGGER refuse BEFORE DELETE ON millrace.outbox FOR EACH ROW EXECUTE FUNCTION public.refuse()`)
	for n := range 50 { // more than a batch
		w.append(t, message("key", n))
	}
	stop := w.start(t)
	// The next batch may have been under way when the first could not be deleted.
	first := len(w.readSome(t, 20)["key"])
	stop()
	w.start(t) // another relay finds the same
	if again := len(w.readSome(t, first)["key"]); again != first || first > 40 {
		t.Errorf("%d events, later %d, want as many, and not more than two batches", first, again)
	}
	w.exec(t, `DROP TABLE public.frozen`)
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 50), 50)
}

// TestTheOldOwnerIsFencedBeforeAnythingIsRead: a zombie that commits once its
// successor has read the marker would publish rows that the successor publishes,
// too.
func TestTheOldOwnerIsFencedBeforeAnythingIsRead(t *testing.T) {
	w := newWorld(t)
	for n := range 20 {
		w.append(t, message("key", n))
	}
	w.onlyShard(t, outbox.Shard("key"))
	zombie := w.deadOwner(t, "key", 20)
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE millrace.outbox`); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	await(t, "the relay reads rows", 20*time.Second, func() bool {
		return w.count(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
	if err := zombie.EndTransaction(t.Context(), kgo.TryCommit); err == nil {
		t.Error("the old owner could still commit")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 20), 20)
}

// TestTheShardsOfADeadRelayMove: it left leases and no word.
func TestTheShardsOfADeadRelayMove(t *testing.T) {
	w := newWorld(t)
	dead := uuid.New()
	w.exec(t, `INSERT INTO millrace.relays VALUES ($1, now())`, dead)
	w.exec(t, `INSERT INTO millrace.relay_shards SELECT n, $1, now() + interval '2 seconds' FROM generate_series(0, $2 - 1) AS n`, dead, outbox.Shards)
	for n := range 5 {
		w.append(t, message("key", n))
	}
	w.start(t)
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 5), 5)
	await(t, "all shards have moved", 10*time.Second, func() bool {
		return w.count(t, `SELECT count(*) FROM millrace.relay_shards WHERE owner = $1`, dead) == 0
	})
}
