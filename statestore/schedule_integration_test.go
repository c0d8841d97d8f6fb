//go:build integration

package statestore

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"millrace"
	"millrace/outbox"
)

// held returns a task that is held back until a time.
func held(id, conversation string, runAt time.Time) millrace.ScheduledTask {
	return millrace.ScheduledTask{RunAt: runAt, Task: millrace.Task{
		ID: id, Conversation: conversation, Type: "chat", Priority: millrace.Normal, ContentType: millrace.JSON, Payload: []byte(`"` + id + `"`),
	}}
}

func mustSchedule(t *testing.T, s *Store, tasks ...millrace.ScheduledTask) {
	t.Helper()
	if err := s.Schedule(t.Context(), tasks); err != nil {
		t.Fatal(err)
	}
}

func newReleaser(t *testing.T, cfg ReleaserConfig) *Releaser {
	t.Helper()
	r, err := NewReleaser(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// releaseAll takes steps until nothing is due.
func releaseAll(t *testing.T, r *Releaser) {
	t.Helper()
	for {
		rest, err := r.step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rest > 0 {
			return
		}
	}
}

// outboxTasks returns what the outbox holds of tasks, in the order of the rows.
func outboxTasks(t *testing.T, pool *pgxpool.Pool) (ids []string, rows []outbox.Message) {
	t.Helper()
	found, err := pool.Query(t.Context(), `SELECT event_id, event_type, topic, COALESCE(key, ''), content_type, COALESCE(headers::text, '[]'), data, at
		FROM millrace.outbox WHERE topic LIKE 'tasks.%' ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	for found.Next() {
		var (
			m       outbox.Message
			key     []byte
			headers string
		)
		if err := found.Scan(&m.ID, &m.Type, &m.Topic, &key, &m.ContentType, &headers, &m.Data, &m.At); err != nil {
			t.Fatal(err)
		}
		if m.Headers, err = decodeHeaders(headers); err != nil {
			t.Fatal(err)
		}
		m.Key, m.At = string(key), m.At.UTC()
		ids, rows = append(ids, m.ID), append(rows, m)
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return ids, rows
}

func TestDueTasksAreReleasedInTheOrderOfTheirTimes(t *testing.T) {
	s := newStore(t)
	now := time.Now()
	past := now.Add(-time.Hour)
	mustSchedule(t, s, held("5", "b", past.Add(2*time.Second)), held("2", "a", past), held("future", "a", now.Add(time.Hour)))
	mustSchedule(t, s, held("1", "a", past.Add(-time.Second)), held("3", "", past), held("4", "a", past))
	r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool, BatchSize: 2})
	releaseAll(t, r)
	if ids, _ := outboxTasks(t, s.cfg.Pool); !reflect.DeepEqual(ids, []string{"1", "2", "3", "4", "5"}) {
		t.Errorf("released %v", ids)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.scheduled WHERE released_at IS NULL`); n != 1 {
		t.Errorf("%d tasks wait, want the one whose time has not come", n)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.scheduled WHERE payload <> '' AND released_at IS NOT NULL`); n != 0 {
		t.Errorf("%d released tasks have kept their payload", n)
	}
}

// What a worker makes of the record is the task that was sent.
func TestReleasedTaskIsTheTaskThatWasSent(t *testing.T) {
	s := newStore(t)
	runAt := time.Now().Add(-time.Minute).UTC().Truncate(time.Microsecond)
	want := millrace.Task{
		ID: newID(), Conversation: "grüße", Type: "chat.message", Priority: millrace.High, Tenant: "acme", Source: "urn:desk",
		Time: time.Now().Add(-time.Hour), Deadline: time.Now().Add(time.Hour).UTC().Truncate(time.Second), MaxAttempts: 3, OnBusy: millrace.BusyInterrupt,
		ContentType: "text/plain", Payload: []byte{0, 0xff, 'x'}, Attributes: map[string]string{"channel": "web"},
		TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", TraceState: "a=b",
	}
	unkeyed := held(newID(), "", runAt)
	unkeyed.Task.Payload = nil
	mustSchedule(t, s, millrace.ScheduledTask{Task: want, RunAt: runAt}, unkeyed)
	releaseAll(t, newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool}))
	_, rows := outboxTasks(t, s.cfg.Pool)
	if len(rows) != 2 || rows[0].Topic != "tasks.high" || rows[1].Topic != "tasks.normal" || rows[1].Key != "" || rows[1].Data == nil {
		t.Fatalf("released %+v", rows)
	}
	m := &rows[0]
	record := millrace.Record{Key: []byte(m.Key), Value: m.Data, Headers: append([]millrace.Header{
		{Key: "ce_specversion", Value: []byte("1.0")},
		{Key: "ce_id", Value: []byte(m.ID)},
		{Key: "ce_type", Value: []byte(m.Type)},
		{Key: "ce_time", Value: []byte(m.At.Format(time.RFC3339Nano))},
		{Key: "content-type", Value: []byte(m.ContentType)},
	}, m.Headers...)}
	got, err := millrace.TaskFromRecord(record)
	if err != nil {
		t.Fatal(err)
	}
	want.Priority, want.Time = "", runAt // the topic says the one, and the other is when it was to run
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox WHERE key IS NULL`); n != 1 {
		t.Errorf("%d rows without a key, want 1", n)
	}
}

func TestTaskIsNotReleasedBeforeItsTime(t *testing.T) {
	s := newStore(t)
	r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool})
	mustSchedule(t, s, held("a", "c", time.Now().Add(300*time.Millisecond)))
	for count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.outbox`) == 0 {
		rest, err := r.step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rest > r.cfg.PollInterval {
			t.Fatalf("rests for %s", rest)
		}
		select {
		case <-time.After(rest):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
	var late float64
	if err := s.cfg.Pool.QueryRow(t.Context(), `SELECT extract(epoch FROM released_at - run_at)::float8 FROM millrace.scheduled`).Scan(&late); err != nil {
		t.Fatal(err)
	}
	if late < 0 {
		t.Errorf("released %g s before its time", -late)
	}
	t.Logf("released %.1f ms after its time", late*1000)
}

// A repeat is known as one while the task waits, after its release, and after it
// has completed and its row is gone.
func TestRepeatOfAScheduledTaskIsNoTask(t *testing.T) {
	s := newStore(t)
	r := newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool})
	past, future := time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	rows := func(what string, want int) {
		t.Helper()
		if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.scheduled`); n != want {
			t.Errorf("%s: %d rows, want %d", what, n, want)
		}
	}
	mustSchedule(t, s, held("a", "c", past))
	mustSchedule(t, s, held("a", "c", future), held("a", "c", future))
	rows("repeated while it waits", 1)
	releaseAll(t, r)
	mustSchedule(t, s, held("a", "c", future))
	rows("repeated after its release", 1)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.scheduled WHERE released_at IS NULL`); n != 0 {
		t.Error("the repeat waits for its time")
	}

	forget := func() {
		t.Helper()
		r.forgotten = cursor{}
		if _, err := r.forget(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	rows("forgotten before it has completed", 1)
	c := completion("a", millrace.Conversation{ID: "c"})
	mustCommit(t, s, c, millrace.Committed)
	forget()
	rows("forgotten while a repeat may be under way", 1)
	if _, err := s.cfg.Pool.Exec(t.Context(), `UPDATE millrace.completions SET finished_at = now() - interval '2 minutes'`); err != nil {
		t.Fatal(err)
	}
	forget()
	rows("forgotten once it has completed", 0)
	mustSchedule(t, s, held("a", "c", future))
	rows("repeated after it has completed", 0)

	mustSchedule(t, s, held("lost", "c", past))
	releaseAll(t, r)
	if _, err := s.cfg.Pool.Exec(t.Context(), `UPDATE millrace.scheduled SET released_at = now() - interval '8 days'`); err != nil {
		t.Fatal(err)
	}
	forget()
	rows("released more than a week ago", 0)
}

func TestScheduledTaskIsKnownAndCancelled(t *testing.T) {
	gone := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: 100 * time.Millisecond})
	t.Cleanup(func() { _ = gone.Close() })
	pool := newDatabase(t)
	for what, s := range map[string]*Store{"with Redis": run(t, Config{Pool: pool, Redis: newRedis(t)}), "without": run(t, Config{Pool: pool, Redis: gone})} {
		t.Run(what, func(t *testing.T) {
			id, other, runAt := newID(), newID(), time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
			task := held(id, "c", runAt)
			task.Task.Tenant = "acme"
			mustSchedule(t, s, task, held(other, "c", runAt))
			want := millrace.TaskResult{TaskID: id, ConversationID: "c", Status: millrace.StatusQueued, RunAt: runAt}
			if got, err := s.Task(t.Context(), id); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("the task is %+v, %v; want %+v", got, err, want)
			}
			got, err := s.Cancel(t.Context(), id, false)
			if err != nil || got.Status != millrace.StatusCancelled || got.ConversationID != "c" || !got.RunAt.IsZero() {
				t.Fatalf("cancel: %+v, %v", got, err)
			}
			if n := count(t, pool, `SELECT count(*) FROM millrace.scheduled WHERE task_id = $1`, id); n != 0 {
				t.Error("the cancelled task waits on")
			}
			if n := count(t, pool, `SELECT count(*) FROM millrace.completions WHERE task_id = $1 AND tenant = 'acme' AND type = 'chat' AND priority = 'normal'`, id); n != 1 {
				t.Error("the completion does not say whose it is")
			}
			mustSchedule(t, s, task)
			if n := count(t, pool, `SELECT count(*) FROM millrace.scheduled WHERE task_id = $1`, id); n != 0 {
				t.Error("the cancelled task was scheduled again")
			}

			// As if the process had died before it could drop the row, and the time has come.
			mustCommit(t, s, completion(other, millrace.Conversation{ID: newID()}), millrace.Committed)
			if _, err := pool.Exec(t.Context(), `UPDATE millrace.scheduled SET run_at = now() WHERE task_id = $1`, other); err != nil {
				t.Fatal(err)
			}
			r := newReleaser(t, ReleaserConfig{Pool: pool})
			releaseAll(t, r)
			r.leave(t.Context())
			if ids, _ := outboxTasks(t, pool); len(ids) > 0 {
				t.Errorf("released %v", ids)
			}
			if n := count(t, pool, `SELECT count(*) FROM millrace.scheduled`); n != 0 {
				t.Errorf("%d rows are left", n)
			}
		})
	}
}

// Until a worker has left word of it, a released task is queued and waits for
// nothing.
func TestReleasedTaskIsQueued(t *testing.T) {
	s := newStore(t)
	mustSchedule(t, s, held("a", "c", time.Now().Add(-time.Second)))
	releaseAll(t, newReleaser(t, ReleaserConfig{Pool: s.cfg.Pool}))
	want := millrace.TaskResult{TaskID: "a", ConversationID: "c", Status: millrace.StatusQueued}
	if got, err := s.Task(t.Context(), "a"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the task is %+v, %v; want %+v", got, err, want)
	}
	if got, err := s.Cancel(t.Context(), "a", false); err != nil || got.Status != millrace.StatusCancelled || got.ConversationID != "c" {
		t.Errorf("cancel: %+v, %v", got, err)
	}
	mustCommit(t, s, completion("a", millrace.Conversation{ID: "c"}), millrace.AlreadyCompleted)
}

func TestScheduleWithoutPostgresIsUnavailable(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s, err := New(Config{Pool: pool, Redis: newRedis(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Schedule(t.Context(), []millrace.ScheduledTask{held("a", "c", time.Now())}); !millrace.IsUnavailable(err) {
		t.Errorf("error %v, want unavailable", err)
	}
	if _, err := s.Task(t.Context(), "a"); errors.Is(err, millrace.ErrNotFound) || err == nil {
		t.Errorf("error %v, want that the store does not answer", err)
	}
}
