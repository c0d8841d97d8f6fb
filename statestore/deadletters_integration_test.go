//go:build integration

package statestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace"
	"millrace/outbox"
)

// failed returns the completion of a task that was given up on.
func failed(id, conversation string, change ...func(*millrace.Completion)) millrace.Completion {
	now := time.Now().UTC().Truncate(time.Microsecond)
	c := millrace.Completion{
		Task:   millrace.Task{ID: id, Conversation: conversation, Type: "chat", Tenant: "acme", Priority: millrace.High},
		Status: millrace.StatusFailed, Attempts: 3, Error: "no", StartedAt: now, FinishedAt: now,
		DeadLetter: &millrace.DeadLetter{
			Reason: millrace.ReasonPermanent, Detail: "it cannot be", Stack: "main.go:1",
			Record: millrace.Record{
				Topic: "millrace.tasks.high", Partition: 3, Offset: 7, Key: []byte(conversation), Value: []byte("payload of " + id),
				Headers: []millrace.Header{{Key: "ce_id", Value: []byte(id)}, {Key: "x", Value: []byte("\x00\xff")}},
			},
		},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func newDeadLetters(t *testing.T, cs ...millrace.Completion) (*DeadLetterStore, *Store) {
	t.Helper()
	s := newStore(t)
	for _, c := range cs {
		mustCommit(t, s, c, millrace.Committed)
	}
	return NewDeadLetterStore(s.cfg.Pool), s
}

func tasksOf[T any](letters []T, task func(T) string) []string {
	out := []string{}
	for _, l := range letters {
		out = append(out, task(l))
	}
	return out
}

func listed(d DeadLetter) string { return d.TaskID }
func redriven(r Redriven) string { return r.TaskID }

func TestDeadLettersAreSelectedByEveryFilter(t *testing.T) {
	long := time.Now().Add(-time.Hour).UTC()
	d, _ := newDeadLetters(t,
		failed("a", "c1"),
		failed("b", "c2", func(c *millrace.Completion) { c.DeadLetter.Reason = millrace.ReasonAttemptsExhausted }),
		failed("c", "c1", func(c *millrace.Completion) { c.Task.Type = "mail" }),
		failed("d", "", func(c *millrace.Completion) { c.Task.Tenant = "other"; c.FinishedAt = long }),
		failed("e", "c3", func(c *millrace.Completion) { c.DeadLetter.Record.Topic = "millrace.tasks.batch" }),
	)
	all, more, err := d.List(t.Context(), DeadLetterFilter{}, 100)
	if err != nil || more != 0 {
		t.Fatal(more, err)
	}
	id := func(i int) int64 { return all[i].ID }
	tests := []struct {
		name string
		f    DeadLetterFilter
		want []string
	}{
		{"nothing", DeadLetterFilter{}, []string{"a", "b", "c", "d", "e"}},
		{"ids in any order", DeadLetterFilter{IDs: []int64{id(4), id(0), 999_999}}, []string{"a", "e"}},
		{"reason", DeadLetterFilter{Reason: millrace.ReasonAttemptsExhausted}, []string{"b"}},
		{"type", DeadLetterFilter{TaskType: "mail"}, []string{"c"}},
		{"conversation", DeadLetterFilter{Conversation: "c1"}, []string{"a", "c"}},
		{"tenant", DeadLetterFilter{Tenant: "other"}, []string{"d"}},
		{"topic", DeadLetterFilter{Topic: "millrace.tasks.batch"}, []string{"e"}},
		{"task", DeadLetterFilter{TaskID: "b"}, []string{"b"}},
		{"since", DeadLetterFilter{Since: long.Add(time.Minute)}, []string{"a", "b", "c", "e"}},
		{"until", DeadLetterFilter{Until: long.Add(time.Minute)}, []string{"d"}},
		{"range of ids", DeadLetterFilter{After: id(0), Last: id(2)}, []string{"b", "c"}},
		{"two at once", DeadLetterFilter{Conversation: "c1", TaskType: "chat"}, []string{"a"}},
		{"none", DeadLetterFilter{Conversation: "c1", Tenant: "other"}, []string{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			letters, more, err := d.List(t.Context(), test.f, 100)
			if got := tasksOf(letters, listed); err != nil || more != 0 || !slices.Equal(got, test.want) {
				t.Errorf("got %v, %d more, %v; want %v", got, more, err, test.want)
			}
			if n, _, err := d.Count(t.Context(), test.f); err != nil || n != int64(len(test.want)) {
				t.Errorf("count %d, %v", n, err)
			}
		})
	}
	if got, err := d.Nth(t.Context(), DeadLetterFilter{Conversation: "c1"}, 2); err != nil || got != id(2) {
		t.Errorf("the second of conversation c1: %d, %v", got, err)
	}
	if _, err := d.Nth(t.Context(), DeadLetterFilter{Conversation: "c1"}, 3); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("a third of two: %v", err)
	}
	page, more, err := d.List(t.Context(), DeadLetterFilter{}, 2)
	if err != nil || len(page) != 2 || more != 3 {
		t.Errorf("a page of 2: %d, %d more, %v", len(page), more, err)
	}
	page, more, err = d.List(t.Context(), DeadLetterFilter{After: page[1].ID}, 3)
	if err != nil || !slices.Equal(tasksOf(page, listed), []string{"c", "d", "e"}) || more != 0 {
		t.Errorf("the rest: %v, %d more, %v", tasksOf(page, listed), more, err)
	}
}

func TestADeadLetterIsReadAsItWasKept(t *testing.T) {
	c := failed("a", "c1")
	d, _ := newDeadLetters(t, c, failed("null", "", func(c *millrace.Completion) { c.DeadLetter.Record.Key, c.DeadLetter.Record.Value = nil, nil }))
	all, _, err := d.List(t.Context(), DeadLetterFilter{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Get(t.Context(), all[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	want := c.DeadLetter.Record
	if r := got.Record; r.Topic != want.Topic || r.Partition != 3 || r.Offset != 7 || !bytes.Equal(r.Key, want.Key) || !bytes.Equal(r.Value, want.Value) ||
		fmt.Sprint(r.Headers) != fmt.Sprint(want.Headers) {
		t.Errorf("record %+v, want %+v", r, want)
	}
	if got.Stack != "main.go:1" || got.Priority != millrace.High || got.Tenant != "acme" || !got.RedrivenAt.IsZero() {
		t.Errorf("got %+v", got)
	}
	null, err := d.Get(t.Context(), all[1].ID)
	if err != nil || null.Record.Key != nil || null.Record.Value != nil {
		t.Errorf("null key and value became %q, %q, %v", null.Record.Key, null.Record.Value, err)
	}
	if _, err := d.Get(t.Context(), 999_999); !errors.Is(err, millrace.ErrNotFound) {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestDropLeavesWhatWasRedrivenUnlessAsked(t *testing.T) {
	d, _ := newDeadLetters(t, failed("a", "c1"), failed("b", "c1"), failed("c", "c2"))
	if _, err := d.Redrive(t.Context(), DeadLetterFilter{TaskID: "a"}, acknowledge(nil)); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Drop(t.Context(), DeadLetterFilter{Conversation: "c1"}); err != nil || n != 1 {
		t.Errorf("dropped %d, %v", n, err)
	}
	if n, err := d.Drop(t.Context(), DeadLetterFilter{Conversation: "c1", Redriven: true}); err != nil || n != 1 {
		t.Errorf("dropped %d, %v", n, err)
	}
	if n, _, err := d.Count(t.Context(), DeadLetterFilter{Redriven: true}); err != nil || n != 1 {
		t.Errorf("%d are left, %v", n, err)
	}
}

// acknowledge notes what it is given and says that all of it was sent.
func acknowledge(sent *[]string) Send {
	return func(_ context.Context, letters []DeadLetter) []error {
		if sent != nil {
			*sent = append(*sent, tasksOf(letters, listed)...)
		}
		return make([]error, len(letters))
	}
}

func TestRedriveRecordsWhatWasSentAndKeepsWhatWasNot(t *testing.T) {
	d, s := newDeadLetters(t, failed("a", "c1"), failed("b", "c1"), failed("c", "c1"))
	out, err := d.Redrive(t.Context(), DeadLetterFilter{}, func(_ context.Context, letters []DeadLetter) []error {
		if got := tasksOf(letters, listed); !slices.Equal(got, []string{"a", "b", "c"}) || string(letters[0].Record.Value) != "payload of a" {
			t.Errorf("to send: %v", got)
		}
		return []error{nil, errors.New("refused"), nil}
	})
	if err != nil || len(out) != 3 || out[0].Resort != Sent || out[1].Resort != Kept || out[1].Err == nil || out[2].Resort != Sent {
		t.Fatalf("got %+v, %v", out, err)
	}
	if left, _, err := d.List(t.Context(), DeadLetterFilter{}, 9); err != nil || !slices.Equal(tasksOf(left, listed), []string{"b"}) {
		t.Errorf("waiting: %v, %v", left, err)
	}
	a, err := d.Get(t.Context(), out[0].ID)
	if err != nil || a.RedrivenAs != 1 || time.Since(a.RedrivenAt) > time.Minute {
		t.Errorf("recorded %+v, %v", a, err)
	}
	// The redriven task fails again: a dead letter of its own, whose turn is next.
	mustCommit(t, s, failed("a", "c1", func(c *millrace.Completion) { c.Task.Redrive = 1 }), millrace.Committed)
	var sent []string
	out, err = d.Redrive(t.Context(), DeadLetterFilter{Conversation: "c1"}, acknowledge(&sent))
	if err != nil || !slices.Equal(sent, []string{"b", "a"}) {
		t.Fatalf("sent %v, %v", sent, err)
	}
	if again, err := d.Get(t.Context(), out[1].ID); err != nil || again.RedrivenAs != 2 {
		t.Errorf("recorded %+v, %v", again, err)
	}
	if out, err := d.Redrive(t.Context(), DeadLetterFilter{}, acknowledge(nil)); err != nil || len(out) != 0 {
		t.Errorf("the end: %v, %v", out, err)
	}
}

func TestALetterWhoseNextRunHasEndedIsNotSentAgain(t *testing.T) {
	d, s := newDeadLetters(t, failed("a", "c1"))
	// It was sent, but the process died before that was recorded; then it ran.
	mustCommit(t, s, failed("a", "c1", func(c *millrace.Completion) {
		c.Task.Redrive, c.Status, c.DeadLetter = 1, millrace.StatusCompleted, nil
	}), millrace.Committed)
	var sent []string
	for range 2 {
		if peek, err := d.Peek(t.Context(), DeadLetterFilter{Redriven: true}); err != nil || peek[0].Resort != Ended {
			t.Errorf("outlook %+v, %v", peek, err)
		}
		out, err := d.Redrive(t.Context(), DeadLetterFilter{Redriven: true}, acknowledge(&sent))
		if err != nil || len(out) != 1 || out[0].Resort != Ended || len(sent) != 0 {
			t.Errorf("got %+v, sent %v, %v", out, sent, err)
		}
	}
	if n, _, err := d.Count(t.Context(), DeadLetterFilter{}); err != nil || n != 0 {
		t.Errorf("%d wait, %v", n, err)
	}
}

// Both have the same selection: between them every letter goes once, and those of
// a conversation in order.
func TestTwoRedrivesAtOnceSendEveryLetterOnceAndInOrder(t *testing.T) {
	const conversations, each = 5, 100
	var all []millrace.Completion
	for i := range conversations * each {
		all = append(all, failed(fmt.Sprintf("t%03d", i), fmt.Sprintf("c%d", i%conversations)))
	}
	d, _ := newDeadLetters(t, all...)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		order []int64
	)
	for range 2 {
		wg.Go(func() {
			f := DeadLetterFilter{}
			for {
				out, err := d.Redrive(t.Context(), f, func(_ context.Context, letters []DeadLetter) []error {
					for _, l := range letters {
						mu.Lock()
						order = append(order, l.ID)
						mu.Unlock()
					}
					return make([]error, len(letters))
				})
				if err != nil {
					t.Error(err)
				}
				if len(out) == 0 {
					return
				}
				f.After = out[len(out)-1].ID
			}
		})
	}
	wg.Wait()
	if len(order) != conversations*each {
		t.Errorf("%d letters were sent, want %d", len(order), conversations*each)
	}
	if !slices.IsSorted(order) {
		t.Errorf("sent in the order %v", order)
	}
}

func TestARedriveThatGoesOnKeepsLettersFromBeingDropped(t *testing.T) {
	d, _ := newDeadLetters(t, failed("a", "c1"))
	dropped := make(chan int64, 1)
	out, err := d.Redrive(t.Context(), DeadLetterFilter{}, func(_ context.Context, letters []DeadLetter) []error {
		go func() {
			n, err := d.Drop(t.Context(), DeadLetterFilter{})
			if err != nil {
				t.Error(err)
			}
			dropped <- n
		}()
		awaitBlocked(t, d.pool, 1)
		return make([]error, len(letters))
	})
	if err != nil || len(out) != 1 {
		t.Fatal(out, err)
	}
	if n := <-dropped; n != 0 {
		t.Errorf("%d letters were dropped while they were being sent", n)
	}
}

func TestWhatWasAcknowledgedIsRecordedThoughTheCallerGivesUp(t *testing.T) {
	d, _ := newDeadLetters(t, failed("a", "c1"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := d.Redrive(ctx, DeadLetterFilter{}, func(_ context.Context, letters []DeadLetter) []error {
		cancel()
		return make([]error, len(letters))
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, _, err := d.Count(t.Context(), DeadLetterFilter{}); err != nil || n != 0 {
		t.Errorf("%d wait, %v", n, err)
	}
}

func TestAnEventGoesBackToTheOutboxOnce(t *testing.T) {
	d, s := newDeadLetters(t)
	headers, err := outbox.EncodeHeaders([]millrace.Header{
		{Key: "ce_subject", Value: []byte("s")}, {Key: "content-type", Value: []byte("text/plain")}, {Key: "ce_time", Value: []byte("2026-01-02T03:04:05Z")},
	})
	if err != nil {
		t.Fatal(err)
	}
	insert := func(topic, event, headers, data string) {
		t.Helper()
		_, err := s.cfg.Pool.Exec(t.Context(), `INSERT INTO millrace.dead_letters
			(task_id, redrive, tenant, type, reason, detail, attempts, topic, partition, "offset", key, value, headers, at)
			VALUES ($1, 0, '', 'said', 'event_unpublishable', 'no such topic', 1, $2, -1, -1, 'c1', $3, $4::json, now())`, event, topic, []byte(data), headers)
		if err != nil {
			t.Fatal(err)
		}
	}
	insert("events", "t1.event0", headers, "hello")
	insert("events", "t1.event1", "[]", `{"a":1}`)
	insert("events", "t1.event3", `{"not":"headers"}`, `{}`)
	insert(outbox.MarkersTopic, "t1.event2", "[]", `{}`)
	for range 2 {
		out, err := d.Redrive(t.Context(), DeadLetterFilter{}, func(context.Context, []DeadLetter) []error {
			t.Error("an event was sent as a task")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, kept := range out[len(out)-2:] {
			if kept.Resort != Kept || kept.Err == nil {
				t.Errorf("an event for the markers topic, or with headers that are none: %+v", kept)
			}
		}
	}
	rows := []string{}
	sql := `SELECT concat_ws(' ', event_id, topic, convert_from(key, 'UTF8'), event_type, content_type, convert_from(data, 'UTF8'),
		to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), headers::text) FROM millrace.outbox ORDER BY id`
	r, err := s.cfg.Pool.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for r.Next() {
		var row string
		if err := r.Scan(&row); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	want := []string{
		`t1.event0 events c1 said text/plain hello 2026-01-02 [{"k":"ce_subject","v":"cw=="}]`,
		`t1.event1 events c1 said application/json {"a":1} ` + time.Now().UTC().Format(time.DateOnly),
	}
	if r.Err() != nil || !slices.Equal(rows, want) {
		t.Errorf("the outbox has %q, %v", rows, r.Err())
	}
	if waiting, _, err := d.List(t.Context(), DeadLetterFilter{}, 9); err != nil || !slices.Equal(tasksOf(waiting, listed), []string{"t1.event3", "t1.event2"}) {
		t.Errorf("waiting: %+v, %v", waiting, err)
	}
}

func TestABatchIsBoundedInBytes(t *testing.T) {
	large := func(c *millrace.Completion) { c.DeadLetter.Record.Value = make([]byte, redriveBatchBytes/2-1) }
	d, _ := newDeadLetters(t, failed("a", "", large), failed("b", "", large), failed("c", "", large))
	out, err := d.Peek(t.Context(), DeadLetterFilter{})
	if got := tasksOf(out, redriven); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("took %v, %v", got, err)
	}
}

func TestDatabaseRefusesDeadLettersThatCannotBe(t *testing.T) {
	pool := newDatabase(t)
	for _, wrong := range []struct {
		constraint, task            string
		redrive, attempts, redriven int
	}{
		{"dead_letters_task_id_given", "", 0, 1, 1},
		{"dead_letters_redrive_counts", "t", -1, 1, 1},
		{"dead_letters_attempts_count", "t", 0, -1, 1},
		{"dead_letters_redriven_as_a_later_run", "t", 1, 1, 1},
	} {
		_, err := pool.Exec(t.Context(), `INSERT INTO millrace.dead_letters
			(task_id, redrive, attempts, redriven_as, redriven_at, tenant, type, reason, detail, topic, partition, "offset", headers, at)
			VALUES ($1, $2, $3, $4, now(), '', 'x', 'x', '', 'x', 0, 0, '[]', now())`, wrong.task, wrong.redrive, wrong.attempts, wrong.redriven)
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.ConstraintName != wrong.constraint {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
	if n := count(t, pool, `SELECT count(*) FROM pg_constraint WHERE connamespace = 'millrace'::regnamespace AND NOT convalidated`); n != 0 {
		t.Errorf("%d constraints are not validated", n)
	}
}
