//go:build integration

package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/outbox"
)

// openTx appends a message in a transaction that stays open.
func (w *world) openTx(t *testing.T, m outbox.Message) pgx.Tx {
	t.Helper()
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	if err := outbox.Append(t.Context(), tx, m); err != nil {
		t.Fatal(err)
	}
	return tx
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// sibling returns another key of a key's shard, with a name of its own.
func sibling(key, name string) string {
	for i := 0; ; i++ {
		if other := fmt.Sprint(name, "-", i); outbox.Shard(other) == outbox.Shard(key) {
			return other
		}
	}
}

// TestARowThatCommitsLateIsNotSkipped: the lower id is drawn first and committed
// last. The relay passes it in between, and in one case hands over in between, to
// one that reads from where the first one recorded.
func TestARowThatCommitsLateIsNotSkipped(t *testing.T) {
	for name, restart := range map[string]bool{"the relay runs on": false, "another relay takes over": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.onlyShard(t, outbox.Shard("late"))
			stop := w.start(t)
			other := sibling("late", "other")
			late := w.openTx(t, message("late", 0))
			for n := range 60 { // three batches, each of its own snapshots
				w.append(t, message(other, n))
				if n%20 == 19 {
					w.awaitRows(t, other, 0)
				}
			}
			// What the relay has recorded for its successor must not be past the row.
			w.awaitRenewal(t)
			if restart {
				stop()
				w.start(t)
				w.append(t, message(other, 60))
				w.awaitRows(t, other, 0)
			}
			commit(t, late)
			w.append(t, message("late", 1)) // is not to come before the one that was late
			w.awaitRows(t, "late", 0)
			got := w.readSome(t, 62)
			if len(got["late"]) != 2 || got["late"][0] != "0" || got["late"][1] != "1" {
				t.Errorf("events of the late key: %v, want 0 and 1", got["late"])
			}
		})
	}
}

// awaitRows waits until a key has so many committed rows left.
func (w *world) awaitRows(t *testing.T, key string, want int) {
	t.Helper()
	await(t, fmt.Sprintf("%d rows of %s", want, key), 20*time.Second, func() bool {
		return w.count(t, `SELECT count(*) FROM millrace.outbox WHERE key = $1`, []byte(key)) == want
	})
}

// awaitRenewal waits until the owner of a shard has renewed its leases twice.
func (w *world) awaitRenewal(t *testing.T) {
	t.Helper()
	const renewed = `SELECT (extract(epoch FROM max(leased_till)) * 1000)::bigint FROM millrace.relay_shards WHERE owner IN (SELECT id FROM millrace.relays)`
	for range 2 {
		before := w.count(t, renewed)
		await(t, "a renewal", 10*time.Second, func() bool { return w.count(t, renewed) > before })
	}
}

// TestTheFloorPassesWhatIsPublished: a successor need not walk over everything that
// was ever deleted, and a sequence that was set back hides nothing from it.
func TestTheFloorPassesWhatIsPublished(t *testing.T) {
	w := newWorld(t)
	w.onlyShard(t, outbox.Shard("key"))
	stop := w.start(t)
	for n := range 50 {
		w.append(t, message("key", n))
	}
	w.awaitEmpty(t)
	await(t, "the floor is where the ids are", 10*time.Second, func() bool {
		return w.count(t, `SELECT max(floor) FROM millrace.relay_shards`) == 50
	})
	stop()
	w.exec(t, `TRUNCATE millrace.outbox RESTART IDENTITY`)
	w.start(t)
	w.append(t, message("key", 50))
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 51), 51)
}

// TestAnInsertShowsInSnapshotsBeforeItDrawsIds: the relay relies on it.
func TestAnInsertShowsInSnapshotsBeforeItDrawsIds(t *testing.T) {
	w := newWorld(t)
	// The default of the last column is computed after the id is drawn.
	w.exec(t, `CREATE FUNCTION public.xid_at_draw() RETURNS text LANGUAGE sql VOLATILE AS 'SELECT pg_current_xact_id_if_assigned()::text'`)
	w.exec(t, `ALTER TABLE millrace.outbox ADD COLUMN drawn text DEFAULT public.xid_at_draw()`)
	w.exec(t, `INSERT INTO millrace.outbox (shard, topic, event_id, event_type, at)
		SELECT 0, 'results', 'e' || n, 't', now() FROM generate_series(1, 2) AS n`)
	if n := w.count(t, `SELECT count(*) FROM millrace.outbox WHERE drawn IS NULL`); n != 0 {
		t.Errorf("%d of 2 rows drew their id before their transaction had one", n)
	}
}

func TestAtLeastOnceNeedsNoTransaction(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.AtLeastOnce = true
	w.startWith(t, cfg)
	for n := range 50 {
		w.append(t, message("key", n))
	}
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 50), 50)
	if n := w.transactions(t); n != 0 {
		t.Errorf("%d transactional ids", n)
	}
}

// TestAtLeastOnceTakesOverFromExactlyOnce: rows in the marker are not repeated.
func TestAtLeastOnceTakesOverFromExactlyOnce(t *testing.T) {
	w := newWorld(t)
	for n := range 30 {
		w.append(t, message("key", n))
	}
	dead := w.deadOwner(t, "key", 20)
	if err := dead.EndTransaction(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	cfg := w.config()
	cfg.AtLeastOnce = true
	w.startWith(t, cfg)
	w.awaitEmpty(t)
	checkOrder(t, w.read(t, 30), 30)
}
