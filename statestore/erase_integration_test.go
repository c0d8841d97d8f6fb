//go:build integration

package statestore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"millrace"
)

const secret = "Achille's heel"

// confide commits a turn whose every part holds the secret, but for its events.
func confide(t *testing.T, s *Store, id string, base millrace.Conversation) millrace.Conversation {
	t.Helper()
	c := completion(id, base)
	c.Effects.State = fmt.Appendf(nil, "{%q:1}", secret)
	c.Effects.Messages = []millrace.Message{{Role: millrace.RoleUser, Content: secret}, {Role: millrace.RoleAssistant, Content: secret}}
	c.Effects.Result = fmt.Appendf(nil, "%q", secret)
	c.Effects.Events = nil
	mustCommit(t, s, c, millrace.Committed)
	return base.After(&c.Task, &c.Effects, c.FinishedAt)
}

func mustErase(t *testing.T, s *Store, id string) millrace.Erasure {
	t.Helper()
	e, err := s.Erase(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// leaks returns where in PostgreSQL, but for the outbox, and in Redis the secret is.
func leaks(t *testing.T, s *Store) (where []string) {
	t.Helper()
	rows, err := s.cfg.Pool.Query(t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = 'millrace' AND tablename <> 'outbox'`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 6 {
		t.Fatalf("tables %v, %v", tables, err)
	}
	for _, table := range tables {
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.`+table+` AS r WHERE position($1 IN r::text) + position($2 IN r::text) > 0`,
			secret, hex.EncodeToString([]byte(secret))); n > 0 {
			where = append(where, fmt.Sprintf("%s %d", table, n))
		}
	}
	ctx, client := t.Context(), s.cfg.Redis
	for _, key := range client.Keys(ctx, "*").Val() {
		var text string
		switch client.Type(ctx, key).Val() {
		case "hash":
			text = fmt.Sprint(client.HGetAll(ctx, key).Val())
		case "list":
			text = fmt.Sprint(client.LRange(ctx, key, 0, -1).Val())
		case "zset":
			text = fmt.Sprint(client.ZRange(ctx, key, 0, -1).Val())
		default:
			text = client.Get(ctx, key).Val()
		}
		if strings.Contains(text, secret) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(secret))) {
			where = append(where, key)
		}
	}
	return where
}

func TestErasureLeavesNothingThatWasSaid(t *testing.T) {
	s := newStore(t)
	other := confide(t, s, "other-task", millrace.Conversation{ID: "other"})
	conv := millrace.Conversation{ID: "conv"}
	for i := range 3 {
		conv = confide(t, s, fmt.Sprintf("task-%d", i), conv)
	}
	// A task that was given up on, two records that can be no task, a step of a task
	// that runs, and the fingerprint of a request.
	dead := completion("dead", conv)
	dead.Status, dead.Effects, dead.Error = millrace.StatusFailed, millrace.Effects{}, "cannot answer "+secret
	dead.DeadLetter = &millrace.DeadLetter{
		Reason: millrace.ReasonPermanent, Detail: secret, Stack: secret,
		Record: millrace.Record{Topic: "t", Key: []byte("conv"), Value: []byte(secret), Headers: []millrace.Header{{Key: "ce_x", Value: []byte(secret)}}},
	}
	mustCommit(t, s, dead, millrace.Committed)
	for id, key := range map[string]string{"unreadable": "conv", "foreign": strings.Repeat("long ", 2000)} {
		bad := completion(id, millrace.Conversation{})
		bad.Status, bad.Effects = millrace.StatusFailed, millrace.Effects{}
		bad.DeadLetter = &millrace.DeadLetter{Reason: "invalid_json", Detail: "not JSON", Record: millrace.Record{Topic: "t", Key: []byte(key)}}
		mustCommit(t, s, bad, millrace.Committed)
	}
	step := millrace.Step{Task: millrace.Key{ID: "runs"}, Conversation: "conv", Name: "llm", RequestHash: sha256.Sum256(nil), BaseVersion: conv.Version}
	if _, _, err := s.Begin(t.Context(), step); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), step, millrace.StepResult{Output: []byte(secret)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), map[string]string{"task-0": "of " + secret}); err != nil {
		t.Fatal(err)
	}
	exec(t, s.cfg.Pool, `INSERT INTO millrace.scheduled (task_id, run_at, conversation_id, tenant, type, priority, content_type, headers, payload)
		SELECT 'later', now() + interval '1 day', 'conv', '', 'chat', 'normal', '', '[]', $1`, []byte(secret))
	if before := leaks(t, s); len(before) < 9 {
		t.Fatalf("the secret is only in %v", before)
	}

	e := mustErase(t, s, "conv")
	if !e.Done || e.ConversationID != "conv" || time.Since(e.ErasedAt) > time.Minute {
		t.Errorf("%+v", e)
	}
	otherHash, otherList := s.hot.keys("other")
	want := map[string]bool{"conversations 1": true, "messages 2": true, "completions 1": true, otherHash: true, otherList: true}
	for _, where := range leaks(t, s) {
		if !want[where] {
			t.Errorf("still there: %s", where)
		}
		delete(want, where)
	}
	if len(want) > 0 {
		t.Errorf("of another conversation is gone: %v", want)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.dead_letters WHERE task_id = 'foreign'`); n != 1 {
		t.Error("a dead letter under another key is gone")
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.dead_letters`); n != 1 {
		t.Errorf("%d dead letters are left", n)
	}
	done, err := s.Completed(t.Context(), []millrace.Key{{ID: "task-0"}, {ID: "task-2"}, {ID: "dead"}})
	if err != nil || len(done) != 3 {
		t.Errorf("of the tasks, known to have ended: %v, %v", done, err)
	}
	if r, err := s.Task(t.Context(), "task-0"); err != nil || r.Status != millrace.StatusCompleted || r.Result != nil || r.Usage.Calls != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := s.Conversation(t.Context(), "conv"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("the conversation can be read: %v", err)
	}
	if got, err := s.Conversation(t.Context(), "other"); err != nil || got.Version != other.Version || len(got.Tail) != 2 {
		t.Errorf("another conversation: %+v, %v", got, err)
	}
	if _, err := s.Erase(t.Context(), "never"); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("erasing nothing: %v", err)
	}
}

func TestConversationBeginsAnewBehindItsErasure(t *testing.T) {
	s := newStore(t)
	conv := talk(t, s, "conv", 2)
	mustErase(t, s, "conv")
	want := millrace.Conversation{ID: "conv", Version: conv.Version + 1, Erased: 4}
	for _, from := range []string{"Redis", "PostgreSQL"} {
		if got := mustOpen(t, s, "conv"); !reflect.DeepEqual(got, want) {
			t.Errorf("from %s: %+v, want %+v", from, got, want)
		}
		s.cfg.Redis.FlushDB(t.Context())
	}
	fresh := want
	for i := range 2 {
		fresh = confide(t, s, fmt.Sprint("fresh-", i), fresh)
	}
	if fresh.Tail[0].Seq != 5 || fresh.Length != 4 || fresh.Last() != 8 {
		t.Errorf("%+v", fresh)
	}
	got, err := s.Conversation(t.Context(), "conv")
	if err != nil || got.Length != 4 || got.Erased != 4 || !reflect.DeepEqual(got.Tail, fresh.Tail) {
		t.Errorf("%+v, %v\nwant %+v", got, err, fresh)
	}
	if hot := mustOpen(t, s, "conv"); !reflect.DeepEqual(hot, fresh) {
		t.Errorf("hot: %+v\nwant %+v", hot, fresh)
	}
	if history, err := s.History(t.Context(), "conv", fresh.Last(), 100); err != nil || len(history) != 4 {
		t.Errorf("history of %d messages, %v", len(history), err)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.conversations WHERE length - erased <> (SELECT count(*) FROM millrace.messages WHERE conversation_id = id)`); n != 0 {
		t.Error("lengths are not those of the histories")
	}
}

func TestErasedTwiceIsErasedOnce(t *testing.T) {
	s := newStore(t)
	conv := talk(t, s, "conv", 2)
	var wg sync.WaitGroup
	for range 6 { // at once
		wg.Go(func() {
			if _, err := s.Erase(t.Context(), "conv"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if e := mustErase(t, s, "conv"); !e.Done {
		t.Errorf("%+v", e)
	}
	got := mustOpen(t, s, "conv")
	if got.Version != conv.Version+1 || got.Erased != 4 {
		t.Errorf("%+v, want one version more than %d", got, conv.Version)
	}
	// A turn that has begun since is not lost to yet another erasure of the same.
	mustErase(t, s, "conv")
	fresh := confide(t, s, "fresh", got)
	if e := mustErase(t, s, "conv"); !e.Done || len(leaks(t, s)) > 0 {
		t.Errorf("what came since is in %v", leaks(t, s))
	}
	if got := mustOpen(t, s, "conv"); got.Version != fresh.Version+1 || got.Erased != 6 {
		t.Errorf("%+v", got)
	}
}

func TestWhatWasReadBeforeAnErasureNeverComesBack(t *testing.T) {
	s := newStore(t)
	conv := confide(t, s, "task-1", confide(t, s, "task-0", millrace.Conversation{ID: "conv"}))
	before, err := s.Reload(t.Context(), &millrace.Task{ID: "x", Conversation: "conv"})
	if err != nil {
		t.Fatal(err)
	}
	late := completion("late", conv)
	mustErase(t, s, "conv")

	hash, _ := s.hot.keys("conv")
	check := func(after string) {
		t.Helper()
		if where := leaks(t, s); len(where) > 0 {
			t.Errorf("after %s the secret is in %v", after, where)
		}
		if got := mustOpen(t, s, "conv"); got.Version != conv.Version+1 || got.Length != 0 {
			t.Errorf("after %s: %+v", after, got)
		}
	}
	// Workers that sleep between their commit, or their reading, and their write.
	if err := s.hot.advance(t.Context(), []advanced{{base: conv.Version - 1, next: conv, added: 2}}); err != nil {
		t.Fatal(err)
	}
	check("a commit's late write")
	for _, overwrite := range []bool{false, true} {
		if err := s.hot.put(t.Context(), []millrace.Conversation{before}, overwrite); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("a late write of what was read, overwriting %v", overwrite))
	}
	// A worker that has not heard of it.
	mustCommit(t, s, late, millrace.Conflict)
	check("a late commit")
	reloaded, err := s.Reload(t.Context(), &late.Task)
	if err != nil || reloaded.Version != conv.Version+1 || reloaded.Length != 0 || reloaded.State != nil {
		t.Fatalf("%+v, %v", reloaded, err)
	}
	late.Base = reloaded
	mustCommit(t, s, late, millrace.Committed)
	if got := mustOpen(t, s, "conv"); got.Length != 1 || got.Tail[0].Seq != 5 {
		t.Errorf("after the turn ran anew: %+v", got)
	}
	if held := s.cfg.Redis.HGet(t.Context(), hash, "t").Val(); held != fmt.Sprint(conv.Version+1) {
		t.Errorf("tombstone of version %q", held)
	}
}

func TestStaleHotCopyIsReplacedByTheTombstone(t *testing.T) {
	s := newStore(t)
	conv := talk(t, s, "conv", 3)
	stale := millrace.Conversation{ID: "conv", Version: 1, Length: 1, State: fmt.Appendf(nil, "%q", secret)}
	if err := s.hot.put(t.Context(), []millrace.Conversation{stale}, true); err != nil {
		t.Fatal(err)
	}
	mustErase(t, s, "conv")
	if got := mustOpen(t, s, "conv"); got.Version != conv.Version+1 || got.State != nil {
		t.Errorf("%+v", got)
	}
}

// Without Redis rows go, and the erasure stays open until the hot copy has gone.
func TestErasureWaitsForRedis(t *testing.T) {
	s := newStore(t)
	confide(t, s, "task", millrace.Conversation{ID: "conv"})
	out, err := New(Config{Pool: s.cfg.Pool, Redis: redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.cfg.Redis.Close() }()
	if e := mustErase(t, out, "conv"); e.Done {
		t.Error("done without Redis")
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.messages`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	if len(leaks(t, s)) == 0 {
		t.Fatal("the hot copy is gone already")
	}
	if done, err := s.eraser.finish(t.Context(), "conv"); !done || err != nil || len(leaks(t, s)) > 0 {
		t.Errorf("done %v, %v, left in %v", done, err, leaks(t, s))
	}
}

// batchTracer fails the test when a batch changes too many rows, and calls at, if
// there is one, with the number of batches so far.
type batchTracer struct {
	t       *testing.T
	mu      sync.Mutex
	deleted int
	batches int
	at      func(batches int)
}

func (b *batchTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (b *batchTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

func (b *batchTracer) TraceBatchQuery(_ context.Context, _ *pgx.Conn, q pgx.TraceBatchQueryData) {
	if !strings.Contains(q.SQL, "DELETE FROM millrace.") && !strings.Contains(q.SQL, "UPDATE millrace.completions") {
		return
	}
	n := int(q.CommandTag.RowsAffected())
	if n > largestBatch {
		b.t.Errorf("%d rows in one transaction: %s", n, q.SQL)
	}
	b.mu.Lock()
	b.deleted, b.batches = b.deleted+n, b.batches+1
	batches := b.batches
	b.mu.Unlock()
	if b.at != nil {
		b.at(batches)
	}
}

func (b *batchTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (b *batchTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func tracedPool(t *testing.T, of *pgxpool.Pool, tracer *batchTracer) *pgxpool.Pool {
	t.Helper()
	cfg := of.Config()
	cfg.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// A long conversation is empty at once. Who deletes its rows dies in the middle,
// turns go on meanwhile, and somebody else deletes the rest and only that.
func TestErasureThatWasInterruptedIsFinishedByAnother(t *testing.T) {
	s := newStore(t)
	conv := confide(t, s, "task", millrace.Conversation{ID: "conv"})
	exec(t, s.cfg.Pool, `INSERT INTO millrace.messages SELECT 'conv', g, 'user', $1, 'task', now() FROM generate_series(3, 30000) g`, []byte(secret))
	exec(t, s.cfg.Pool, `INSERT INTO millrace.completions (task_id, redrive, conversation_id, tenant, type, priority, status, attempts, result, commit_token, started_at, finished_at)
		SELECT 't-' || g, g % 2, 'conv', '', 'chat', 'normal', 'completed', 1, to_json($1::text), gen_random_uuid(), now(), now() FROM generate_series(1, 6000) g`, secret)
	exec(t, s.cfg.Pool, `UPDATE millrace.conversations SET length = 30000`)

	dying, die := context.WithCancel(t.Context())
	tracer := &batchTracer{t: t, at: func(n int) {
		if n == 3 {
			die()
		}
	}}
	first, err := New(Config{Pool: tracedPool(t, s.cfg.Pool, tracer), Redis: s.cfg.Redis})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := first.Erase(dying, "conv"); err != nil || e.Done {
		t.Fatalf("%+v, %v", e, err)
	}
	left := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.messages`)
	if left == 0 || left == 30000 {
		t.Fatalf("%d messages are left by the one that died, want some of 30000", left)
	}
	conv = mustOpen(t, s, "conv")
	if conv.Length != 0 || conv.Erased != 30000 {
		t.Fatalf("%+v", conv)
	}
	if m, err := s.History(t.Context(), "conv", 30000, 10); err != nil || len(m) > 0 {
		t.Errorf("%d erased messages are read, %v", len(m), err)
	}
	fresh := confide(t, s, "fresh", conv)
	s.cfg.Redis.FlushDB(t.Context())
	if got := mustOpen(t, s, "conv"); !reflect.DeepEqual(got, fresh) {
		t.Errorf("%+v\nwant %+v", got, fresh)
	}

	tracer.at = nil
	if done, err := first.eraser.finish(t.Context(), "conv"); !done || err != nil {
		t.Fatalf("done %v, %v", done, err)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.messages WHERE seq > 30000`); n != 2 {
		t.Errorf("%d messages of the new turn, want 2", n)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.messages`); n != 2 {
		t.Errorf("%d messages, want those of the new turn", n)
	}
	if r, err := s.Task(t.Context(), "fresh"); err != nil || r.Result == nil {
		t.Errorf("the result of the new turn: %s, %v", r.Result, err)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.completions WHERE result IS NOT NULL AND task_id <> 'fresh'`); n != 0 {
		t.Errorf("%d results are left", n)
	}
	if got := mustOpen(t, s, "conv"); !reflect.DeepEqual(got, fresh) {
		t.Errorf("%+v\nwant %+v", got, fresh)
	}
	if tracer.batches < 6+6 {
		t.Errorf("36000 rows went in %d batches", tracer.batches)
	}
}

// A task that was given up on after the erasure, and a step that was taken after it,
// are not its own.
func TestErasureTakesNothingThatCameAfterIt(t *testing.T) {
	s := newStore(t)
	talk(t, s, "conv", 1)
	if _, err := s.eraser.mark(t.Context(), "conv"); err != nil {
		t.Fatal(err)
	}
	// Redis has not heard of it: a turn would meet a conflict and reload.
	conv, err := s.Reload(t.Context(), &millrace.Task{ID: "x", Conversation: "conv"})
	if err != nil || conv.Length != 0 {
		t.Fatalf("%+v, %v", conv, err)
	}
	step := millrace.Step{Task: millrace.Key{ID: "runs"}, Conversation: "conv", Name: "llm", BaseVersion: conv.Version}
	if _, _, err := s.Begin(t.Context(), step); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), step, millrace.StepResult{Output: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	dead := completion("dead", conv)
	dead.Status, dead.Effects, dead.Error = millrace.StatusFailed, millrace.Effects{}, "new"
	dead.DeadLetter = &millrace.DeadLetter{Reason: millrace.ReasonPermanent, Detail: "new", Record: millrace.Record{Topic: "t", Key: []byte("conv")}}
	// The clock of a worker may be behind.
	dead.FinishedAt = dead.FinishedAt.Add(-time.Hour)
	mustCommit(t, s, dead, millrace.Committed)
	if done, err := s.eraser.finish(t.Context(), "conv"); !done || err != nil {
		t.Fatalf("done %v, %v", done, err)
	}
	if n := count(t, s.cfg.Pool, `SELECT (SELECT count(*) FROM millrace.dead_letters) + (SELECT count(*) FROM millrace.steps)`); n != 2 {
		t.Errorf("%d of the dead letter and the step are left", n)
	}
	if r, err := s.Task(t.Context(), "dead"); err != nil || r.Error != "new" {
		t.Errorf("%+v, %v", r, err)
	}
}

// A turn that only answers does not change its conversation, but has read it.
func TestResultOfWhatWasErasedIsNotCommitted(t *testing.T) {
	s := newStore(t)
	conv := confide(t, s, "task", openedAs("conv"))
	answer := completion("answer", conv)
	answer.Effects = millrace.Effects{Result: fmt.Appendf(nil, "%q", secret)}
	fresh := confide(t, s, "next", conv)
	mustErase(t, s, "conv")
	mustCommit(t, s, answer, millrace.Conflict)
	if where := leaks(t, s); len(where) > 0 {
		t.Errorf("the secret is in %v", where)
	}
	answer.Base = mustOpen(t, s, "conv")
	answer.Effects.Result = []byte(`2`)
	if answer.Base.Version != fresh.Version+1 {
		t.Errorf("opened as %+v", answer.Base)
	}
	mustCommit(t, s, answer, millrace.Committed)
}

func TestConversationThatHasOnlyBegunToWaitIsErased(t *testing.T) {
	s := newStore(t)
	exec(t, s.cfg.Pool, `INSERT INTO millrace.scheduled (task_id, run_at, conversation_id, tenant, type, priority, content_type, headers, payload)
		SELECT 'later', now() + interval '1 day', 'conv', '', 'chat', 'normal', '', '[]', $1`, []byte(secret))
	if e := mustErase(t, s, "conv"); !e.Done || len(leaks(t, s)) > 0 {
		t.Errorf("%+v, left in %v", e, leaks(t, s))
	}
}

// Whoever has deleted what one erasure left does not end another that came meanwhile.
func TestErasureOfWhatCameMeanwhileStaysOpen(t *testing.T) {
	s := newStore(t)
	talk(t, s, "conv", 1)
	first, err := s.eraser.mark(t.Context(), "conv")
	if err != nil {
		t.Fatal(err)
	}
	conv, err := s.Reload(t.Context(), &millrace.Task{ID: "x", Conversation: "conv"})
	if err != nil {
		t.Fatal(err)
	}
	confide(t, s, "fresh", conv)
	if _, err := s.eraser.mark(t.Context(), "conv"); err != nil {
		t.Fatal(err)
	}
	exec(t, s.cfg.Pool, eraseDoneSQL, "conv", conv.Version, first.ErasedAt)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.erasures`); n != 1 {
		t.Error("the second erasure counts as done")
	}
	if done, err := s.eraser.finish(t.Context(), "conv"); !done || err != nil || len(leaks(t, s)) > 0 {
		t.Errorf("done %v, %v, left in %v", done, err, leaks(t, s))
	}
}

func TestErasuresAreToldToWorkersThatListenAndThatComeLater(t *testing.T) {
	s := newStore(t)
	talk(t, s, "early", 1)
	talk(t, s, "late", 1)
	mustErase(t, s, "early")
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan millrace.Erased, 10)
	done := make(chan error, 1)
	go func() {
		done <- s.WatchErasures(ctx, func(all []millrace.Erased) {
			for _, e := range all {
				told <- e
			}
		})
	}()
	next := func() millrace.Erased {
		select {
		case e := <-told:
			return e
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is told")
			panic("unreachable")
		}
	}
	if e := next(); e != (millrace.Erased{Conversation: "early", Version: 2}) {
		t.Errorf("%+v", e)
	}
	mustErase(t, s, "late")
	if e := next(); e != (millrace.Erased{Conversation: "late", Version: 2}) {
		t.Errorf("%+v", e)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func openedAs(id string) millrace.Conversation { return millrace.Conversation{ID: id} }
