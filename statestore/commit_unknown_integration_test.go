//go:build integration

package statestore

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace"
)

// TestCommitUnknownOutcome loses the connection while a turn commits, so that its
// outcome is unknown. However far the server had come, the turn must be told once
// that it has committed, never that another run did, and leave one set of
// effects.
func TestCommitUnknownOutcome(t *testing.T) {
	t.Run("the answer is lost after any byte of it", func(t *testing.T) {
		cutEverywhere(t, 5, func(n int64) budget { return budget{Written: -1, Read: n} }, 0)
	})
	t.Run("the request is lost after any byte of it", func(t *testing.T) {
		cutEverywhere(t, 97, func(n int64) budget { return budget{Written: n, Read: -1} }, 1)
	})
	for _, conversation := range []string{"conv", ""} {
		name := map[string]string{"conv": "", "": ", unkeyed"}[conversation]
		t.Run("the first transaction ends while the second waits for it"+name, func(t *testing.T) {
			cutInCommit(t, conversation, false)
		})
		t.Run("the first transaction is rolled back while the second waits for it"+name, func(t *testing.T) {
			cutInCommit(t, conversation, true)
		})
	}
	t.Run("the server refuses at the very end", refusedInCommit)
	t.Run("the caller gives up and hands the turn in again", handedInAgain)
}

// cutEverywhere commits turns, each on a connection that is warm and breaks some
// bytes later than for the one before. Of the transactions that each turn takes
// part in, the one numbered by must have committed it.
func cutEverywhere(t *testing.T, step int64, at func(n int64) budget, by int) {
	direct := newDatabase(t)
	f := &faults{}
	s := run(t, Config{Pool: newFaultyPool(t, direct.Config(), f, 1), Redis: newRedis(t)})
	var turns []string
	for n := int64(0); ; n += step {
		warm := fmt.Sprintf("warm-%d", n)
		mustCommit(t, s, completion(warm, millrace.Conversation{ID: warm}), millrace.Committed)
		before := f.cuts.Load()
		f.arm(at(n))
		id := fmt.Sprintf("task-%d", n)
		p := &pendingCommit{completion: completion(id, millrace.Conversation{ID: id}), done: make(chan commitResult, 1)}
		s.commitBatch(t.Context(), []*pendingCommit{p})
		mustHaveTold(t, p, millrace.Committed)
		turns = append(turns, warm, id)
		if f.cuts.Load() == before {
			f.arm(unlimited)
			break // all of it is shorter than this
		}
		if len(p.tokens) < 2 || committedBy(t, direct, id) != p.tokens[by] {
			t.Errorf("cut after %d bytes: of %d transactions, another than number %d committed", n, len(p.tokens), by)
		}
	}
	t.Logf("%d cuts", f.cuts.Load())
	if f.cuts.Load() < 20 {
		t.Errorf("only %d cuts", f.cuts.Load())
	}
	for _, id := range turns {
		mustHaveOneSet(t, direct, id, id)
	}
}

// cutInCommit breaks the connection when everything is written and the server is
// in COMMIT, which it leaves only once a second transaction waits for it.
func cutInCommit(t *testing.T, conversation string, rolledBack bool) {
	direct := newDatabase(t)
	f := &faults{uncancelled: true}
	s := run(t, Config{Pool: newFaultyPool(t, direct.Config(), f, 2), Redis: newRedis(t)})
	// Deferred constraints are checked when a transaction commits.
	mustExec(t, direct, `
		CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END';
		CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON millrace.completions DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (NEW.task_id = 'task') EXECUTE FUNCTION hold();`)
	gate, err := direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := gate.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
		t.Fatal(err)
	}
	c := completion("task", millrace.Conversation{ID: conversation})
	if conversation == "" {
		c.Effects.State, c.Effects.Messages = nil, nil
	}
	p := &pendingCommit{completion: c, done: make(chan commitResult, 1)}
	go s.commitBatch(t.Context(), []*pendingCommit{p})
	awaitBlocked(t, direct, 1)
	first := blockedBackends(t, direct)
	f.cut()
	awaitBlocked(t, direct, 2)
	by := 0
	if rolledBack {
		by = 1
		mustExec(t, direct, `SELECT pg_terminate_backend($1)`, first[0])
	}
	if err := gate.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustHaveTold(t, p, millrace.Committed)
	if len(p.tokens) != 2 || committedBy(t, direct, "task") != p.tokens[by] {
		t.Errorf("of %d transactions, another than number %d committed", len(p.tokens), by)
	}
	mustHaveOneSet(t, direct, "task", conversation)
	// And whoever runs the task now hears that it is done.
	mustCommit(t, s, c, millrace.AlreadyCompleted)
	mustHaveOneSet(t, direct, "task", conversation)
}

// refusedInCommit: all statements were answered, outcomes among them, and then
// COMMIT fails. No turn may be told what those answers said.
func refusedInCommit(t *testing.T) {
	s := newStore(t)
	mustExec(t, s.cfg.Pool, `
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''not this one''; END';
		CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON millrace.completions DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (NEW.task_id = 'refused') EXECUTE FUNCTION refuse();`)
	var batch []*pendingCommit
	for _, id := range []string{"one", "refused", "two"} {
		batch = append(batch, &pendingCommit{completion: completion(id, millrace.Conversation{ID: id}), done: make(chan commitResult, 1)})
	}
	s.commitBatch(t.Context(), batch)
	mustHaveTold(t, batch[0], millrace.Committed)
	mustHaveTold(t, batch[2], millrace.Committed)
	if r := <-batch[1].done; r.err == nil || millrace.IsUnavailable(r.err) {
		t.Errorf("refused: %v, %v", r.outcome, r.err)
	}
	mustHaveOneSet(t, s.cfg.Pool, "one", "one")
	mustHaveOneSet(t, s.cfg.Pool, "two", "two")
	for _, from := range []string{
		"completions WHERE task_id = 'refused'", "messages WHERE task_id = 'refused'", "outbox WHERE event_id LIKE 'refused.%'",
		"conversations WHERE id = 'refused' AND (version > 0 OR length > 0)",
	} {
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.`+from); n != 0 {
			t.Errorf("%d rows in %s", n, from)
		}
	}
}

// handedInAgain: the first call is still under way when the second comes. The
// effects are those of one of the two, and the second call is told which.
func handedInAgain(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	c := completion("task", millrace.Conversation{ID: "conv"})
	mustCommit(t, s, completion("other", millrace.Conversation{ID: "other"}), millrace.Committed)
	gate, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gate.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := gate.Exec(t.Context(), `INSERT INTO millrace.conversations (id) VALUES ('conv')`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Commit(ctx, c)
		first <- err
	}()
	awaitBlocked(t, pool, 1)
	cancel()
	if err := <-first; !millrace.IsUnavailable(err) {
		t.Errorf("given up: %v", err)
	}
	p := &pendingCommit{completion: c, done: make(chan commitResult, 1)}
	if !s.commits.push(p) {
		t.Fatal("the store has stopped")
	}
	awaitBlocked(t, pool, 2)
	if err := gate.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := millrace.AlreadyCompleted
	r := <-p.done
	if committedBy(t, pool, "task") == p.tokens[0] {
		want = millrace.Committed
	}
	if r.err != nil || r.outcome != want {
		t.Errorf("told %v, %v; want %v", r.outcome, r.err, want)
	}
	mustHaveOneSet(t, pool, "task", "conv")
}

func mustHaveTold(t *testing.T, p *pendingCommit, want millrace.Outcome) {
	t.Helper()
	if r := <-p.done; r.err != nil || r.outcome != want {
		t.Errorf("%s: told %v, %v; want %v", p.completion.Task.ID, r.outcome, r.err, want)
	}
	select {
	case r := <-p.done:
		t.Errorf("%s: told again: %v, %v", p.completion.Task.ID, r.outcome, r.err)
	default:
	}
}

// mustHaveOneSet looks for the effects of [completion].
func mustHaveOneSet(t *testing.T, pool *pgxpool.Pool, task, conversation string) {
	t.Helper()
	var got [6]int
	err := pool.QueryRow(t.Context(), `SELECT
		(SELECT count(*) FROM millrace.completions WHERE task_id = $1),
		(SELECT count(*) FROM millrace.outbox WHERE event_id IN ($1 || '.event0', $1 || '.result')),
		(SELECT count(*) FROM millrace.outbox WHERE event_id LIKE $1 || '.%'),
		(SELECT count(*) FROM millrace.messages WHERE task_id = $1),
		(SELECT count(*) FROM millrace.messages WHERE conversation_id = $2),
		(SELECT count(*) FROM millrace.conversations WHERE id = $2 AND version = 1 AND length = 1 AND state->>'last' = $1)`,
		task, conversation).Scan(&got[0], &got[1], &got[2], &got[3], &got[4], &got[5])
	if err != nil {
		t.Fatal(err)
	}
	want := [...]int{1, 2, 2, 1, 1, 1}
	if conversation == "" {
		want = [...]int{1, 2, 2, 0, 0, 0}
	}
	if got != want {
		t.Errorf("%s: %v; want %v: completions, its events, all events, messages of the task, messages of the conversation, conversations that agree", task, got, want)
	}
}

// committedBy returns the token of the transaction that committed a task.
func committedBy(t *testing.T, pool *pgxpool.Pool, task string) (token uuid.UUID) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT commit_token FROM millrace.completions WHERE task_id = $1`, task).Scan(&token); err != nil {
		t.Fatalf("completion of %s: %v", task, err)
	}
	return token
}

// blockedBackends returns those that wait for a lock.
func blockedBackends(t *testing.T, pool *pgxpool.Pool) []int32 {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil || len(pids) == 0 {
		t.Fatalf("backends that wait for a lock: %v, %v", pids, err)
	}
	return pids
}

func mustExec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}
