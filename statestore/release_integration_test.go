//go:build integration

package statestore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"millrace"
	"millrace/outbox"
)

// backlog schedules tasks of several conversations that are all due, most of them
// at equal times, and returns how many.
func backlog(t *testing.T, s *Store, name string, n int) {
	t.Helper()
	due := time.Now().Add(-time.Hour).Truncate(time.Second)
	tasks := make([]millrace.ScheduledTask, n)
	for i := range tasks {
		tasks[i] = held(fmt.Sprintf("%s-%05d", name, i), "c"+strconv.Itoa(i%7), due.Add(time.Duration(i/50)*time.Second))
	}
	mustSchedule(t, s, tasks...)
}

// awaitReleased waits until nothing is held back any more.
func awaitReleased(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	for count(t, pool, `SELECT count(*) FROM millrace.scheduled WHERE released_at IS NULL`) > 0 {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("tasks that are due are not released")
		}
	}
}

// checkReleased checks that n tasks are in the outbox, each once, and those of a
// conversation in the order in which they were scheduled.
func checkReleased(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	ids, rows := outboxTasks(t, pool)
	seen := make(map[string]bool)
	last := make(map[string]string)
	for i := range rows {
		m := &rows[i]
		if seen[m.ID] {
			t.Errorf("%s was released twice", m.ID)
		}
		seen[m.ID] = true
		if m.ID < last[m.Key] {
			t.Errorf("%s was released behind %s", m.ID, last[m.Key])
		}
		last[m.Key] = m.ID
	}
	if len(ids) != n || len(seen) != n {
		t.Errorf("released %d tasks, %d different ones, want %d", len(ids), len(seen), n)
	}
}

// The leases run out all the time, as when whoever leads sleeps through his: between
// his look and his release, in the middle of it, and before its end.
func TestReleasersAtOnceReleaseOnceAndInOrder(t *testing.T) {
	s := newStore(t)
	const tasks = 600
	for i := range 3 {
		backlog(t, s, strconv.Itoa(i), tasks/3)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		moved []int
	)
	for range 4 {
		r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool, BatchSize: 20, Lease: 5 * time.Millisecond, PollInterval: time.Millisecond})
		batches := 0
		r.cfg.Published = func(...int) { batches++ }
		group.Go(func() {
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			moved = append(moved, batches)
		})
	}
	awaitReleased(t, s.cfg.Pool)
	cancel()
	group.Wait()
	ids, rows := outboxTasks(t, s.cfg.Pool)
	last := make(map[string]time.Time)
	for i := range rows {
		if rows[i].At.Before(last[rows[i].Key]) {
			t.Errorf("%s was released behind a later one of its conversation", ids[i])
		}
		last[rows[i].Key] = rows[i].At
	}
	if len(ids) != tasks {
		t.Errorf("released %d tasks, want %d", len(ids), tasks)
	}
	t.Logf("batches moved by each: %v", moved)
}

// doom ends a releaser's connections at its n-th write since it was armed: every
// statement and every commit is one. The write is lost, or it arrives and nobody is
// there for the answer.
type doom struct {
	at      int
	arrives bool
	mu      sync.Mutex
	armed   bool
	writes  int
	conns   []net.Conn
}

func (d *doom) arm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = true
}

var errDoom = errors.New("the process is dead")

func (d *doom) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead() {
		return nil, errDoom
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.conns = append(d.conns, conn)
	return &doomedConn{conn, d}, nil
}

func (d *doom) dead() bool { return d.writes >= d.at }

type doomedConn struct {
	net.Conn
	doom *doom
}

func (c *doomedConn) Write(b []byte) (int, error) {
	d := c.doom
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead() {
		return 0, errDoom
	}
	if d.armed {
		d.writes++
	}
	if !d.dead() {
		return c.Conn.Write(b)
	}
	if d.arrives {
		_, _ = c.Conn.Write(b)
	}
	for _, conn := range d.conns {
		_ = conn.(*net.TCPConn).CloseWrite() // what was sent still arrives, as when a process ends
	}
	return 0, errDoom
}

// TestReleaserKilledAnywhere kills a releaser at its first write, at its second, and
// so on until it gets through with its work. The next one takes over.
func TestReleaserKilledAnywhere(t *testing.T) {
	s := newStore(t)
	tasks, points := 0, 0
	for at := 1; ; at++ {
		survived := false
		for _, arrives := range []bool{false, true} {
			backlog(t, s, fmt.Sprintf("%03d-%v", at, arrives), 2)
			tasks += 2
			d := &doom{at: at, arrives: arrives}
			cfg := s.cfg.Pool.Config()
			cfg.ConnConfig.DialFunc = d.dial
			pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := pool.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.arm()
			// The lease of the one before has run out.
			r := newReleaser(t, ReleaserConfig{Pool: pool, Lease: time.Millisecond})
			for err == nil && !survived {
				var rest time.Duration
				rest, err = r.step(t.Context())
				survived = err == nil && rest > 0 && r.metrics.held.leads &&
					count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.scheduled WHERE released_at IS NULL`) == 0
			}
			if err != nil {
				points++
			}
			pool.Close()
		}
		if survived {
			break
		}
	}
	healthy := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- healthy.Run(ctx) }()
	awaitReleased(t, s.cfg.Pool)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	checkReleased(t, s.cfg.Pool, tasks)
	if points < 10 {
		t.Errorf("killed at %d points only", points)
	}
	t.Logf("killed at %d points, %d tasks", points, tasks)
}

// A leader that falls silent in the middle of a release holds its successor up
// until the server ends it: two at once would mix up the order.
func TestReleaseUnderWayHoldsTheSuccessorUp(t *testing.T) {
	s := newStore(t)
	backlog(t, s, "a", 10)
	zombie := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool, Lease: time.Millisecond})
	if _, err := zombie.cfg.Pool.Exec(t.Context(), `UPDATE millrace.release_leader SET owner = $1`, zombie.id); err != nil {
		t.Fatal(err)
	}
	tx, err := s.cfg.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if due, _, err := zombie.take(t.Context(), tx); err != nil || len(due) != 10 {
		t.Fatalf("took %d, %v", len(due), err)
	}
	next := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool})
	if _, err := next.step(t.Context()); err != nil || next.metrics.held.leads {
		t.Fatalf("the successor leads while a release is under way: %v", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(60 * time.Second); !next.metrics.held.leads && time.Now().Before(limit); <-tick.C {
		if _, err := next.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err == nil {
		t.Error("the server has not ended the silent release")
	}
	releaseAll(t, next)
	checkReleased(t, s.cfg.Pool, 10)
	// And one that was deposed between its look and its release moves nothing.
	backlog(t, s, "b", 1)
	if _, _, err := zombie.move(t.Context()); !errors.Is(err, errDeposed) {
		t.Errorf("error %v, want that it does not lead", err)
	}
}

func TestHeldKeyHoldsUpItsConversationAlone(t *testing.T) {
	s := newStore(t)
	tx, err := s.cfg.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if err := outbox.Append(t.Context(), tx, outbox.Message{ID: "e", Type: "said", Topic: "events", Key: "c3"}); err != nil {
		t.Fatal(err)
	}
	backlog(t, s, "a", 70)
	r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool, BatchSize: 20})
	releaseAll(t, r)
	checkReleased(t, s.cfg.Pool, 60)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.scheduled WHERE released_at IS NULL AND conversation_id = 'c3'`); n != 10 {
		t.Errorf("%d tasks of the held conversation wait, want 10", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	releaseAll(t, r)
	checkReleased(t, s.cfg.Pool, 70)
}

// Behind the floor a look finds nothing; every sweep looks at all.
func TestTaskThatTurnsUpLateIsFoundByTheSweep(t *testing.T) {
	s := newStore(t)
	r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool})
	releaseAll(t, r)
	if r.floor.at.IsZero() {
		t.Fatal("there is no floor although nothing waits")
	}
	mustSchedule(t, s, held("just", "c", time.Now().Add(-time.Second)), held("late", "c", time.Now().Add(-time.Hour)))
	releaseAll(t, r)
	if ids, _ := outboxTasks(t, s.cfg.Pool); len(ids) != 1 || ids[0] != "just" {
		t.Errorf("released %v above the floor", ids)
	}
	r.floor.swept = time.Now().Add(-sweepInterval)
	releaseAll(t, r)
	if ids, _ := outboxTasks(t, s.cfg.Pool); len(ids) != 2 {
		t.Errorf("released %v with the sweep", ids)
	}
}

func TestReleaserTellsWhatWaits(t *testing.T) {
	s := newStore(t)
	reg, other := prometheus.NewRegistry(), prometheus.NewRegistry()
	var shards []int
	r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool, BatchSize: 5, Metrics: reg, Published: func(told ...int) { shards = append(shards, told...) }})
	mustSchedule(t, s, held("a", "c", time.Now().Add(-time.Minute)), held("b", "c", time.Now().Add(time.Hour)))
	if _, err := r.step(t.Context()); err != nil { // releases
		t.Fatal(err)
	}
	releaseAll(t, r)
	follower := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool, Metrics: other})
	releaseAll(t, follower)
	for name, want := range map[string]float64{
		"millrace_scheduled_waiting": 1, "millrace_scheduled_lag_seconds": 0, "millrace_scheduled_released_total": 1,
		"millrace_scheduled_discarded_total": 0, "millrace_scheduled_release_delay_seconds": 1,
	} {
		if got := metric(t, reg, name); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if got := metric(t, other, "millrace_scheduled_waiting"); len(got) != 0 {
		t.Errorf("who does not lead says %v", got)
	}
	if len(shards) != 1 || shards[0] != outbox.Shard("c") {
		t.Errorf("told of shards %v", shards)
	}
	// The lag grows while nobody releases.
	r.metrics.lead(new(-2.0))
	if got := metric(t, reg, "millrace_scheduled_lag_seconds"); len(got) != 1 || got[0] < 2 {
		t.Errorf("lag %v, want 2 s or more", got)
	}
}

func metric(t *testing.T, reg *prometheus.Registry, name string) (values []float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.EqualFold(f.GetName(), name) {
			for _, m := range f.GetMetric() {
				values = append(values, m.GetGauge().GetValue()+m.GetCounter().GetValue()+float64(m.GetHistogram().GetSampleCount()))
			}
		}
	}
	return values
}
