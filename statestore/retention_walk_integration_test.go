//go:build integration

package statestore

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace"
)

const day = 24 * time.Hour

func keepAll(c *RetentionConfig) {
	c.Completions, c.Conversations, c.DeadLetters, c.Steps = 30*day, 30*day, 30*day, 7*day
	c.Lease = time.Minute
}

// ended puts completions into the table, as if they had come in before age.
func ended(t *testing.T, pool *pgxpool.Pool, age time.Duration, tasks ...string) {
	t.Helper()
	exec(t, pool, `INSERT INTO millrace.completions (task_id, redrive, tenant, type, priority, status, attempts, commit_token, started_at, finished_at, committed_at)
		SELECT u, 0, '', 'chat', 'normal', 'completed', 1, gen_random_uuid(), now() - $2::interval, now() - $2::interval, now() - $2::interval FROM unnest($1::text[]) u`, tasks, age)
}

func deadLetter(t *testing.T, pool *pgxpool.Pool, task string, age time.Duration) {
	t.Helper()
	exec(t, pool, `INSERT INTO millrace.dead_letters (task_id, redrive, tenant, type, reason, detail, attempts, topic, partition, "offset", headers, at)
		VALUES ($1, 0, '', 'chat', 'permanent_error', '', 1, 't', 0, 0, '[]', now() - $2::interval)`, task, age)
}

func texts(t *testing.T, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantRows(t *testing.T, pool *pgxpool.Pool, what, sql string, want ...string) {
	t.Helper()
	if got := texts(t, pool, sql); !slices.Equal(got, want) {
		t.Errorf("%s: %v are left, want %v", what, got, want)
	}
}

// again lets every walk begin anew at once.
func again(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, `UPDATE millrace.retention_walks SET done = done - interval '1 day'`)
}

func mustStep(t *testing.T, r *Retention) {
	t.Helper()
	if err := r.step(t.Context()); err != nil {
		t.Fatal(err)
	}
}

const (
	completionsLeft = `SELECT task_id FROM millrace.completions ORDER BY 1`
	stepsLeft       = `SELECT task_id || '/' || name FROM millrace.steps ORDER BY 1`
	lettersLeft     = `SELECT task_id FROM millrace.dead_letters ORDER BY 1`
)

func TestRetentionDeletesWhatIsOldEnough(t *testing.T) {
	s := newStore(t)
	pool := s.cfg.Pool
	ended(t, pool, 31*day, "old", "dead", "held-back")
	ended(t, pool, 29*day, "young")
	// The clock of its worker is far behind.
	ended(t, pool, 31*day, "late-clock")
	exec(t, pool, `UPDATE millrace.completions SET committed_at = now() WHERE task_id = 'late-clock'`)
	// A version that knew no committed_at.
	ended(t, pool, 31*day, "older")
	exec(t, pool, `UPDATE millrace.completions SET committed_at = NULL WHERE task_id = 'older'`)
	deadLetter(t, pool, "dead", 29*day)
	deadLetter(t, pool, "gone", 31*day)
	deadLetter(t, pool, "redriven", 31*day)
	exec(t, pool, `UPDATE millrace.dead_letters SET redriven_at = now() - interval '2 days' WHERE task_id = 'redriven'`)
	exec(t, pool, `INSERT INTO millrace.scheduled (task_id, run_at, tenant, type, priority, content_type, headers, payload)
		VALUES ('held-back', now() + interval '1 day', '', 'chat', 'normal', '', '[]', '')`)
	for task, age := range map[string]time.Duration{"young": time.Hour, "old": time.Minute, "never": 8 * day, "waits": 6 * day} {
		exec(t, pool, `INSERT INTO millrace.steps (task_id, redrive, name, request_hash, base_version, incarnation, began_at)
			SELECT $1, 0, 'llm', decode(repeat('00', 32), 'hex'), 0, gen_random_uuid(), now() - $2::interval`, task, age)
	}

	forEver := newRetention(t, s, func(c *RetentionConfig) { c.Steps, c.Lease = -1, time.Minute })
	mustStep(t, forEver)
	wantRows(t, pool, "kept for ever", completionsLeft, "dead", "held-back", "late-clock", "old", "older", "young")
	forEver.leave(t.Context())

	r := newRetention(t, s, keepAll)
	mustStep(t, r)
	wantRows(t, pool, "completions", completionsLeft, "dead", "held-back", "late-clock", "young")
	wantRows(t, pool, "dead letters", lettersLeft, "dead", "redriven")
	// That of young was begun after its completion, by a run that had been taken over;
	// that of old is too young to be looked at.
	wantRows(t, pool, "steps", stepsLeft, "old/llm", "waits/llm")
	for table, want := range map[string]float64{"completions": 2, "dead_letters": 1, "steps": 2} {
		if n := testutil.ToFloat64(r.metrics.rows.WithLabelValues(table)); n != want {
			t.Errorf("%v rows of %s are counted, want %v", n, table, want)
		}
	}

	// Once its dead letter is gone nobody asks for the completion.
	exec(t, pool, `UPDATE millrace.dead_letters SET at = now() - interval '31 days', redriven_at = NULL`)
	mustStep(t, r)
	wantRows(t, pool, "dead letters between two walks", lettersLeft, "dead", "redriven")
	again(t, pool)
	mustStep(t, r)
	wantRows(t, pool, "dead letters", lettersLeft)
	wantRows(t, pool, "completions", completionsLeft, "held-back", "late-clock", "young")
	if b := testutil.ToFloat64(r.metrics.behind.WithLabelValues("completions")); b < day.Seconds() || b > day.Seconds()+60 {
		t.Errorf("behind by %v s, want the day since the walk before", b)
	}
}

// A leader's time is up in the middle of a table; another goes on where it was. One
// that has slept through its lease does not set the place back.
func TestWalkGoesOnWhereALeaderDied(t *testing.T) {
	s := newStore(t)
	pool := s.cfg.Pool
	const rows = 20000
	exec(t, pool, `INSERT INTO millrace.completions (task_id, redrive, tenant, type, priority, status, attempts, commit_token, started_at, finished_at, committed_at)
		SELECT 't-' || g, 0, '', 'chat', 'normal', 'completed', 1, gen_random_uuid(), at, at, at
		FROM generate_series(1, $1) g, LATERAL (SELECT now() - CASE WHEN g % 4 = 0 THEN interval '1 day' ELSE interval '31 days' END AS at) a`, rows)
	left := func() int { return count(t, pool, `SELECT count(*) FROM millrace.completions`) }
	first := newRetention(t, s, keepAll)
	w := first.walks[slices.IndexFunc(first.walks, func(w *walk) bool { return w.of == "completions" })]
	// Its time is up after a batch.
	if err := first.walkOld(t.Context(), w, time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	page := count(t, pool, `SELECT page FROM millrace.retention_walks WHERE of = 'completions'`)
	if n := left(); page == 0 || n == rows || n == rows/4 {
		t.Fatalf("at page %d with %d rows left: want it in the middle", page, n)
	}
	// Rows in front of the place are of the next walk.
	exec(t, pool, `UPDATE millrace.completions SET finished_at = now() - interval '31 days', committed_at = NULL WHERE ctid < '(1,0)'`)
	keep(t, func() bool { return left() <= rows/4 }, newRetention(t, s, keepAll), newRetention(t, s, keepAll))
	if n := left(); n != rows/4 {
		t.Errorf("%d rows are left, want %d", n, rows/4)
	}
	if n := count(t, pool, `SELECT count(*) FROM millrace.completions WHERE finished_at < now() - interval '30 days'`); n == 0 {
		t.Error("the second leader has begun anew")
	}
	// The first wakes up, with a walk of its own in mind that is long over.
	exec(t, pool, retainSaveSQL, "completions", time.Now().Add(-day), 7, false)
	if n := count(t, pool, `SELECT page FROM millrace.retention_walks WHERE of = 'completions'`); n != 0 {
		t.Errorf("the next walk begins at page %d", n)
	}
}

func TestIdleConversationBecomesATombstone(t *testing.T) {
	s := newStore(t)
	pool := s.cfg.Pool
	idle := confide(t, s, "task-idle", openedAs("idle"))
	confide(t, s, "task-waited", openedAs("waited-for"))
	exec(t, pool, `INSERT INTO millrace.scheduled (task_id, run_at, conversation_id, tenant, type, priority, content_type, headers, payload)
		VALUES ('later', now() + interval '1 day', 'waited-for', '', 'chat', 'normal', '', '[]', '')`)
	exec(t, pool, `UPDATE millrace.conversations SET updated_at = now() - interval '31 days'`)
	busy := confide(t, s, "task-busy", openedAs("busy"))

	r := newRetention(t, s, keepAll)
	mustStep(t, r) // tombstones
	// A turn has the conversation as it was, and comes before its rows are gone.
	late := completion("late", idle)
	mustCommit(t, s, late, millrace.Conflict)
	mustStep(t, r) // rows
	if n := count(t, pool, `SELECT count(*) FROM millrace.erasures`); n != 0 {
		t.Fatalf("%d erasures are open", n)
	}
	wantRows(t, pool, "histories", `SELECT DISTINCT conversation_id FROM millrace.messages ORDER BY 1`, "busy", "waited-for")
	if got := mustOpen(t, s, "idle"); !reflect.DeepEqual(got, millrace.Conversation{ID: "idle", Version: idle.Version + 1, Erased: idle.Length}) {
		t.Errorf("%+v", got)
	}
	if got := mustOpen(t, s, "busy"); !reflect.DeepEqual(got, busy) {
		t.Errorf("%+v, want %+v", got, busy)
	}
	if k, err := s.Task(t.Context(), "task-idle"); err != nil || k.Result == nil {
		t.Errorf("the result is kept for as long as completions are: %+v, %v", k, err)
	}
	late.Base = mustOpen(t, s, "idle")
	mustCommit(t, s, late, millrace.Committed)
	// A tombstone is not idle once more.
	version := count(t, pool, `SELECT sum(version) FROM millrace.conversations`)
	again(t, pool)
	mustStep(t, r)
	if n := count(t, pool, `SELECT sum(version) FROM millrace.conversations`); n != version {
		t.Error("what is erased, or not idle, was erased")
	}
}

// A task's commit holds its conversation while the retention comes by: that one
// passes it over, and finds it busy the next time.
func TestConversationThatGetsATaskIsNotIdle(t *testing.T) {
	s := newStore(t)
	pool := s.cfg.Pool
	conv := confide(t, s, "task", openedAs("conv"))
	exec(t, pool, `UPDATE millrace.conversations SET updated_at = now() - interval '31 days'`)
	r := newRetention(t, s, keepAll)

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `UPDATE millrace.conversations SET version = version + 1, updated_at = now()`); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	mustStep(t, r)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the retention waited for a commit, %v", took)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	again(t, pool)
	mustStep(t, r)
	if n := count(t, pool, `SELECT count(*) FROM millrace.messages`); n != int(conv.Length) {
		t.Errorf("%d messages are left, want %d", n, conv.Length)
	}
	if n := count(t, pool, `SELECT version FROM millrace.conversations`); n != int(conv.Version)+1 {
		t.Errorf("version %d", n)
	}
}

// TestWalksReadPagesOnly reads the plans: a walk that read the whole table for each
// batch would be quadratic.
func TestWalksReadPagesOnly(t *testing.T) {
	pool := newDatabase(t)
	cfg := RetentionConfig{}
	keepAll(&cfg)
	for _, w := range cfg.walks() {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{batchLockSQL, `SET LOCAL plan_cache_mode = force_generic_plan`, `PREPARE w (tid, tid, interval, bigint) AS ` + w.sql} {
			if _, err := tx.Exec(t.Context(), sql); err != nil {
				t.Fatal(w.of, err)
			}
		}
		rows, err := tx.Query(t.Context(), `EXPLAIN EXECUTE w ('(0,0)', '(1,0)', '1 day', 1)`)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, "Tid Range Scan on "+w.of) || !strings.Contains(plan, "Tid Scan on "+w.of) || strings.Contains(plan, "Seq Scan") || strings.Contains(plan, "Hash") {
			t.Errorf("%s:\n%s", w.of, plan)
		}
		if _, err := tx.Exec(t.Context(), `DEALLOCATE w`); err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
