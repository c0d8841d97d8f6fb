//go:build integration

package outbox_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace/outbox"
)

// newInbox makes an inbox and a table of accounts in a database of the test's own.
func newInbox(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.exec(t, outbox.InboxSchema)
	w.exec(t, outbox.InboxSchema) // again, as at every start of a consumer
	w.exec(t, `CREATE TABLE public.account (balance integer NOT NULL)`)
	w.exec(t, `INSERT INTO public.account VALUES (0)`)
	return w
}

func addOne(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE public.account SET balance = balance + 1`)
	return err
}

func (w *world) apply(t *testing.T, consumer, event string, f func(context.Context, pgx.Tx) error) (applied bool, err error) {
	t.Helper()
	err = pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) (err error) {
		applied, err = outbox.Inbox{Consumer: consumer}.Apply(t.Context(), tx, event, f)
		return err
	})
	return applied, err
}

func (w *world) wantBalance(t *testing.T, want int) {
	t.Helper()
	if got := w.count(t, `SELECT balance FROM public.account`); got != want {
		t.Errorf("balance %d, want %d", got, want)
	}
}

func TestInboxAppliesAnEventOnceToEachConsumer(t *testing.T) {
	w := newInbox(t)
	for i, step := range []struct {
		consumer, event string
		applied         bool
	}{
		{"billing", "e1", true}, {"billing", "e1", false}, {"billing", "e2", true}, {"audit", "e1", true}, {"audit", "e1", false},
	} {
		if applied, err := w.apply(t, step.consumer, step.event, addOne); applied != step.applied || err != nil {
			t.Errorf("step %d: applied %v, %v", i, applied, err)
		}
	}
	w.wantBalance(t, 3)
}

func TestInboxAppliesConcurrentDuplicatesOnce(t *testing.T) {
	w := newInbox(t)
	var (
		wg      sync.WaitGroup
		applied atomic.Int32
	)
	for range 20 {
		wg.Go(func() {
			ok, err := w.apply(t, "billing", "e1", addOne)
			if err != nil {
				t.Error(err)
			}
			if ok {
				applied.Add(1)
			}
		})
	}
	wg.Wait()
	if n := applied.Load(); n != 1 {
		t.Errorf("%d of 20 applied it", n)
	}
	w.wantBalance(t, 1)
}

// TestInboxDuplicateAppliesWhatTheFirstGaveUp: the second waits for the first, which
// rolls back.
func TestInboxDuplicateAppliesWhatTheFirstGaveUp(t *testing.T) {
	w := newInbox(t)
	broken := errors.New("broken")
	entered, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := w.apply(t, "billing", "e1", func(ctx context.Context, tx pgx.Tx) error {
			close(entered)
			<-leave
			return errors.Join(addOne(ctx, tx), broken)
		})
		if !errors.Is(err, broken) {
			t.Errorf("error %v, want that of apply", err)
		}
	})
	<-entered
	wg.Go(func() {
		if applied, err := w.apply(t, "billing", "e1", addOne); !applied || err != nil {
			t.Errorf("the second: applied %v, %v", applied, err)
		}
	})
	await(t, "the second waits for the first", 10*time.Second, func() bool {
		return w.count(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	close(leave)
	wg.Wait()
	w.wantBalance(t, 1)
}

func TestInboxForgetsWhatIsOldEnough(t *testing.T) {
	w := newInbox(t)
	for _, event := range []string{"old", "new"} {
		if _, err := w.apply(t, "billing", event, addOne); err != nil {
			t.Fatal(err)
		}
	}
	w.exec(t, `UPDATE millrace_inbox SET applied_at = now() - interval '8 days' WHERE event_id = 'old'`)
	box := outbox.Inbox{Consumer: "billing"}
	if n, err := box.Forget(t.Context(), w.pool, 7*24*time.Hour); n != 1 || err != nil {
		t.Errorf("forgot %d, %v, want 1", n, err)
	}
	if applied, err := w.apply(t, "billing", "new", addOne); applied || err != nil {
		t.Errorf("what is new was forgotten: %v, %v", applied, err)
	}
	if _, err := box.Forget(t.Context(), w.pool, 0); err == nil {
		t.Error("an age of zero forgets everything, and is accepted")
	}
}

// forgetting counts what each statement deletes.
type forgetting struct {
	*pgxpool.Pool
	rows []int64
	at   func()
}

func (f *forgetting) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tag, err := f.Pool.Exec(ctx, sql, args...)
	f.rows = append(f.rows, tag.RowsAffected())
	f.at()
	return tag, err
}

func TestInboxForgetsInBatches(t *testing.T) {
	w := newInbox(t)
	w.exec(t, `INSERT INTO millrace_inbox SELECT c, 'e' || g, now() - interval '8 days' FROM generate_series(1, 5000) g, (VALUES ('billing'), ('other')) c (c)`)
	ctx, stop := context.WithCancel(t.Context())
	box := outbox.Inbox{Consumer: "billing"}
	db := &forgetting{Pool: w.pool, at: stop}
	if n, err := box.Forget(ctx, db, time.Hour); n != 2000 || !errors.Is(err, context.Canceled) {
		t.Errorf("forgot %d until it was stopped, %v, want the first batch", n, err)
	}
	db.at = func() {}
	if n, err := box.Forget(t.Context(), db, time.Hour); n != 3000 || err != nil {
		t.Errorf("forgot %d, %v, want the rest", n, err)
	}
	if want := []int64{2000, 2000, 1000}; !slices.Equal(db.rows, want) {
		t.Errorf("statements deleted %v, want %v", db.rows, want)
	}
	if n := w.count(t, `SELECT count(*) FROM millrace_inbox`); n != 5000 {
		t.Errorf("%d events are left, want those of the other consumer", n)
	}
}

func TestInboxWantsNames(t *testing.T) {
	w := newInbox(t)
	if _, err := w.apply(t, "", "e1", addOne); err == nil {
		t.Error("no consumer: accepted")
	}
	if _, err := w.apply(t, "billing", "", addOne); err == nil {
		t.Error("no event id: accepted")
	}
	w.wantBalance(t, 0)
}
