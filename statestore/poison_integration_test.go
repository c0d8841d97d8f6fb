//go:build integration

package statestore

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace"
)

// TestTheDeadLetterOfARecordThatCannotBeDecodedIsTaken commits what decoding left
// of records whose headers no text column can hold.
func TestTheDeadLetterOfARecordThatCannotBeDecodedIsTaken(t *testing.T) {
	s := newStore(t)
	for i, headers := range [][]millrace.Header{
		{{Key: "ce_tenant", Value: []byte("\xff\x00")}},
		{{Key: "ce_tenant", Value: []byte(strings.Repeat("t", 1<<20))}},
		{{Key: "ce_source", Value: []byte("\x00")}},
		{{Key: "content-type", Value: []byte("text/plain; a=\"\xff\"")}, {Key: "ce_id", Value: nil}},
		{{Key: "k\xff\x00", Value: []byte("\x00")}, {Key: "ce_specversion", Value: []byte("\xff")}},
	} {
		r := millrace.Record{Topic: "tasks.high", Offset: int64(i), Value: []byte("\xff\x00"), Headers: headers}
		task, err := millrace.TaskFromRecord(r)
		if err == nil {
			t.Errorf("headers %d decode", i)
			continue
		}
		task.Conversation = ""
		now := time.Now()
		mustCommit(t, s, millrace.Completion{
			Task: task, Status: millrace.StatusFailed, Error: err.Error(), StartedAt: now, FinishedAt: now,
			DeadLetter: &millrace.DeadLetter{Reason: millrace.ReasonInvalidHeader, Detail: err.Error(), Record: r},
		}, millrace.Committed)
	}
}

func TestEffectsThatCannotBeEncodedAreRefusedAlone(t *testing.T) {
	s := newStore(t)
	noJSON := completion("no-json", millrace.Conversation{ID: "a"})
	noJSON.Effects.Result = []byte(`{"half":`)
	noType := completion("no-type", millrace.Conversation{ID: "b"})
	noType.Effects.Events[0].Type = ""
	huge := completion("huge", millrace.Conversation{ID: "d"})
	chunk := make([]byte, 16<<20)
	for range 17 {
		huge.Effects.Events = append(huge.Effects.Events, millrace.Event{Type: "chunk", Data: chunk})
	}
	batch := []*pendingCommit{}
	for _, c := range []millrace.Completion{noJSON, noType, huge, completion("good", millrace.Conversation{ID: "c"})} {
		batch = append(batch, &pendingCommit{completion: c, done: make(chan commitResult, 1)})
	}
	s.commitBatch(t.Context(), batch)
	for i, p := range batch {
		r := <-p.done
		if good := i == len(batch)-1; good != (r.err == nil) || millrace.IsUnavailable(r.err) {
			t.Errorf("%s: %v, %v", p.completion.Task.ID, r.outcome, r.err)
		}
	}
}

// TestWhatIsNotTheDatasFaultIsAnOutage: a task must not become a dead letter
// because the installation is not in order.
func TestWhatIsNotTheDatasFaultIsAnOutage(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t), CommitTimeout: 300 * time.Millisecond})
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	mustCommit(t, s, completion("before", millrace.Conversation{ID: "a"}), millrace.Committed)
	exec(`ALTER TABLE millrace.outbox RENAME TO elsewhere`)
	if _, err := s.Commit(t.Context(), completion("task", millrace.Conversation{ID: "b"})); !millrace.IsUnavailable(err) {
		t.Errorf("commit without a table: %v", err)
	}
	exec(`ALTER TABLE millrace.elsewhere RENAME TO outbox`)
	mustCommit(t, s, completion("task", millrace.Conversation{ID: "b"}), millrace.Committed)
}

// TestALockThatTakesTooLongIsWaitedFor sets a lock_timeout as an administrator
// may, and holds a conversation for longer.
func TestALockThatTakesTooLongIsWaitedFor(t *testing.T) {
	pool := newDatabase(t)
	for _, sql := range []string{
		`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = ''30ms''', current_database()); END $$`,
		`INSERT INTO millrace.conversations (id) VALUES ('conv')`,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	pool.Reset()
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM millrace.conversations FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { _ = tx.Rollback(t.Context()) })
	mustCommit(t, s, completion("task", millrace.Conversation{ID: "conv"}), millrace.Committed)
}

// TestAnErrorAtTheCommitItselfIsNotTakenForASuccess: all statements succeed and
// the end of the transaction fails.
func TestAnErrorAtTheCommitItselfIsNotTakenForASuccess(t *testing.T) {
	s := newStore(t)
	_, err := s.cfg.Pool.Exec(t.Context(), `
		CREATE FUNCTION objection() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN IF NEW.task_id = 'bad' THEN RAISE EXCEPTION 'not that one'; END IF; RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON millrace.completions
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION objection()`)
	if err != nil {
		t.Fatal(err)
	}
	if outcome, err := s.Commit(t.Context(), completion("bad", millrace.Conversation{ID: "a"})); err == nil || millrace.IsUnavailable(err) {
		t.Errorf("%v, %v", outcome, err)
	}
	mustCommit(t, s, completion("good", millrace.Conversation{ID: "a"}), millrace.Committed)
}

// TestCommitUnderStricterIsolation: an administrator's default must cost time at
// most.
func TestCommitUnderStricterIsolation(t *testing.T) {
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			pool := newDatabase(t)
			sql := fmt.Sprintf(`DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET default_transaction_isolation = %%L', current_database(), '%s'); END $$`, level)
			if _, err := pool.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
			pool.Reset()
			s := run(t, Config{Pool: pool, Redis: newRedis(t), BatchSize: 5})
			var wg sync.WaitGroup
			const tasks = 40
			for i := range tasks {
				for range 2 { // two workers run the same task
					wg.Go(func() {
						task := millrace.Task{ID: fmt.Sprintf("task-%d", i), Conversation: fmt.Sprintf("conv-%d", i%4)}
						conv, err := s.Open(t.Context(), &task)
						for {
							if err != nil {
								t.Error(err)
								return
							}
							outcome, err := s.Commit(t.Context(), completion(task.ID, conv))
							if err != nil {
								t.Error(err)
							}
							if err != nil || outcome != millrace.Conflict {
								return
							}
							if conv, err = s.Reload(t.Context(), &task); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
			}
			wg.Wait()
			for table, want := range map[string]int{"messages": tasks, "outbox": 2 * tasks, "completions": tasks} {
				if n := count(t, pool, `SELECT count(*) FROM millrace.`+table); n != want {
					t.Errorf("%d rows in %s, want %d", n, table, want)
				}
			}
		})
	}
}

// TestCommitInEveryQueryMode: PgBouncer asks for another mode than the default.
func TestCommitInEveryQueryMode(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			cfg := newDatabase(t).Config()
			cfg.ConnConfig.DefaultQueryExecMode = mode
			s := run(t, Config{Pool: newPool(t, cfg), Redis: newRedis(t)})
			c := completion("task-1", millrace.Conversation{ID: "conv"})
			c.Effects.Messages[0].Content = "\xff\x00"
			c.Effects.Events[0].Data = nil
			mustCommit(t, s, c, millrace.Committed)
			mustCommit(t, s, c, millrace.AlreadyCompleted)
			mustCommit(t, s, completion("task-2", millrace.Conversation{ID: "conv"}), millrace.Conflict)
			if _, done, err := s.Begin(t.Context(), millrace.Step{Task: millrace.Key{ID: "task-3"}, Name: "step"}); done || err != nil {
				t.Errorf("begin a step: %v, %v", done, err)
			}
			if conv, err := s.Conversation(t.Context(), "conv"); err != nil || conv.Version != 1 || conv.Tail[0].Content != "\xff\x00" {
				t.Errorf("%+v, %v", conv, err)
			}
		})
	}
}
