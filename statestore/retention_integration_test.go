//go:build integration

package statestore

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func newRetention(t *testing.T, of *Store, change func(*RetentionConfig)) *Retention {
	t.Helper()
	cfg := RetentionConfig{Pool: of.cfg.Pool, Redis: of.cfg.Redis, Lease: 6 * time.Second}
	if change != nil {
		change(&cfg)
	}
	r, err := NewRetention(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// keep runs retentions until the test says that they have done their work.
func keep(t *testing.T, until func() bool, retentions ...*Retention) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, r := range retentions {
		wg.Go(func() {
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	limit := time.After(60 * time.Second)
	over := false
	for !over && !until() {
		select {
		case <-ticker.C:
		case <-limit:
			over = true
		}
	}
	cancel()
	wg.Wait()
	if over {
		t.Fatal("not done in a minute")
	}
}

func TestRetentionFinishesWhatErasuresHaveLeft(t *testing.T) {
	s := newStore(t)
	ids := []string{"a", "b", "c"}
	for _, id := range ids {
		confide(t, s, "task-"+id, confide(t, s, "first-"+id, openedAs(id)))
		if _, err := s.eraser.mark(t.Context(), id); err != nil { // and die
			t.Fatal(err)
		}
	}
	if len(leaks(t, s)) < 3 {
		t.Fatal("nothing is left to delete")
	}
	metrics := prometheus.NewRegistry()
	r := newRetention(t, s, func(c *RetentionConfig) { c.Metrics = metrics })
	open := func() bool { return count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.erasures`) > 0 }
	keep(t, func() bool { return !open() }, r, newRetention(t, s, nil))
	if where := leaks(t, s); len(where) > 0 {
		t.Errorf("left in %v", where)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.retention_leader WHERE owner IS NOT NULL`); n != 0 {
		t.Error("the lead was not given back")
	}
	if n := testutil.ToFloat64(r.metrics.failures); n != 0 {
		t.Errorf("%v failures", n)
	}
}

// One that cannot be deleted now, because a redrive holds its dead letter, keeps no
// other from being deleted.
func TestErasureThatFailsHoldsUpNoOther(t *testing.T) {
	s := newStore(t)
	for _, id := range []string{"held", "free"} {
		confide(t, s, "task-"+id, openedAs(id))
		exec(t, s.cfg.Pool, `INSERT INTO millrace.dead_letters (task_id, redrive, conversation_id, tenant, type, reason, detail, attempts, topic, partition, "offset", headers, at)
			VALUES ($1, 0, $1, '', 'chat', 'permanent_error', $2, 1, 't', 0, 0, '[]', now())`, id, secret)
		if _, err := s.eraser.mark(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := s.cfg.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM millrace.dead_letters WHERE conversation_id = 'held' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	r := newRetention(t, s, func(c *RetentionConfig) { c.Lease = 20 * time.Second })
	if err := r.step(t.Context()); err == nil {
		t.Error("no word of the erasure that failed")
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.erasures WHERE conversation_id = 'free'`); n != 0 {
		t.Error("the other erasure is not done")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.step(t.Context()); err != nil || len(leaks(t, s)) > 0 {
		t.Errorf("%v, left in %v", err, leaks(t, s))
	}
}

func TestRetentionIsLedByOne(t *testing.T) {
	s := newStore(t)
	talk(t, s, "conv", 1)
	one := newRetention(t, s, func(c *RetentionConfig) { c.Lease = time.Minute })
	two := newRetention(t, s, func(c *RetentionConfig) { c.Lease = time.Minute })
	if err := one.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.eraser.mark(t.Context(), "conv"); err != nil {
		t.Fatal(err)
	}
	open := func() int { return count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.erasures`) }
	if err := two.step(t.Context()); err != nil || open() != 1 {
		t.Errorf("who does not lead has worked: %v", err)
	}
	// The leader dies: its lease runs out.
	exec(t, s.cfg.Pool, `UPDATE millrace.retention_leader SET leased_till = now() - interval '1 second'`)
	if err := two.step(t.Context()); err != nil || open() != 0 {
		t.Errorf("nobody has taken over: %v", err)
	}
	if err := one.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.retention_leader WHERE owner = $1`, two.id); n != 1 {
		t.Error("who has slept through its lease leads again")
	}
}
