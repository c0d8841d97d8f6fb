package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/outbox"
)

// A batch is what one transaction of a redrive holds.
const (
	redriveBatch      = 200
	redriveBatchBytes = 16 << 20
)

// Resort is what became of a dead letter that was to be put back.
type Resort int

// What a redrive does with a dead letter.
const (
	// Sent: its record is in Kafka again.
	Sent Resort = iota + 1
	// Requeued: the event is in the outbox again.
	Requeued
	// Ended: it was sent before, and the run that followed has ended.
	Ended
	// Kept: it could not be sent; it waits as before.
	Kept
)

// Redriven is a dead letter and what became of it.
type Redriven struct {
	DeadLetter
	Resort Resort
	// Err is why it was kept.
	Err error
}

// Send puts the records of dead letters into Kafka, each as the next redrive of
// its task, and returns for each nil once it is acknowledged, or else why not. The
// later letters of a conversation must not overtake an earlier one.
type Send func(ctx context.Context, letters []DeadLetter) []error

// Redrive takes the first dead letters of a selection, at most a few hundred, has
// the tasks among them sent and puts the events among them into the outbox. It
// returns them in the order they came; none means that the selection is at its
// end. The rest of it is what comes after the id of the last one.
//
// All of it is one transaction under a lock that redrives take one at a time.
// That keeps two operators from sending the same letter, or from sending a
// conversation's letters side by side. A transaction that is lost after Kafka has
// acknowledged leaves its letters waiting: they are sent again by the next
// redrive, under the same number, and the run that comes second finds the task
// completed.
func (s *DeadLetterStore) Redrive(ctx context.Context, f DeadLetterFilter, send Send) ([]Redriven, error) {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return nil, classify(fmt.Errorf("redrive: %w", err))
	}
	defer func() {
		ctx, cancel := outlive(ctx)
		defer cancel()
		_ = tx.Rollback(ctx) // nothing, once it has committed
	}()
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('millrace.dead_letters.redrive', 0))`); err != nil {
		return nil, classify(fmt.Errorf("wait for another redrive: %w", err))
	}
	letters, err := takeDeadLetters(ctx, tx, f, "FOR UPDATE OF d")
	if err != nil || len(letters) == 0 {
		return nil, err
	}
	out := outlook(letters)
	var (
		tasks []DeadLetter
		at    []int // where in out each of them is
	)
	for i := range out {
		if out[i].Resort == Sent {
			tasks, at = append(tasks, out[i].DeadLetter), append(at, i)
		}
	}
	if len(tasks) > 0 {
		for i, err := range send(ctx, tasks) {
			if err != nil {
				out[at[i]].Resort, out[at[i]].Err = Kept, err
			}
		}
	}
	ctx, cancel := outlive(ctx)
	defer cancel()
	return out, settle(ctx, tx, out)
}

// outlive returns a context for what must be recorded even when the caller gives
// up: what Kafka has acknowledged is sent.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}

// outlook says what is to become of dead letters, as far as it is known without
// sending them.
func outlook(letters []DeadLetter) []Redriven {
	out := make([]Redriven, len(letters))
	for i := range letters {
		r := Redriven{DeadLetter: letters[i], Resort: Sent}
		switch {
		case r.ended:
			r.Resort = Ended
		case r.HeadersErr != nil:
			r.Resort, r.Err = Kept, r.HeadersErr
		case r.IsEvent():
			m := eventOf(&r.DeadLetter)
			r.Resort = Requeued
			if _, err := m.Columns(); err != nil {
				r.Resort, r.Err = Kept, err
			}
		}
		out[i] = r
	}
	return out
}

//go:embed sql/dead_letters_redriven.sql
var deadLettersRedrivenSQL string

func settle(ctx context.Context, tx pgx.Tx, letters []Redriven) error {
	var (
		ids    []int64
		events []outbox.Message
	)
	for i := range letters {
		r := &letters[i]
		if r.Resort == Kept || r.Resort == Ended && !r.RedrivenAt.IsZero() {
			continue
		}
		ids = append(ids, r.ID)
		if r.Resort == Requeued {
			events = append(events, eventOf(&r.DeadLetter))
		}
	}
	if len(events) > 0 {
		if err := outbox.Append(ctx, tx, events...); err != nil {
			return classify(fmt.Errorf("put events back: %w", err))
		}
	}
	_, err := tx.Exec(ctx, deadLettersRedrivenSQL, ids)
	if err == nil {
		err = tx.Commit(ctx)
	}
	if err != nil {
		return classify(fmt.Errorf("record redrive: %w", err))
	}
	return nil
}

// Peek returns what [DeadLetterStore.Redrive] would take, and what would become
// of each as far as it is known without sending. It does nothing to them.
func (s *DeadLetterStore) Peek(ctx context.Context, f DeadLetterFilter) ([]Redriven, error) {
	letters, err := takeDeadLetters(ctx, s.pool, f, "")
	return outlook(letters), err
}

// takeDeadLetters reads the first letters of a selection, bounded in number and in
// bytes.
func takeDeadLetters(ctx context.Context, q querier, f DeadLetterFilter, lock string) ([]DeadLetter, error) {
	args := f.args()
	args["limit"] = redriveBatch
	rows, err := q.Query(ctx, "SELECT d.id, COALESCE(octet_length(d.value), 0) FROM millrace.dead_letters d\n"+
		deadLettersWhereSQL+"ORDER BY d.id LIMIT @limit "+lock, args)
	if err != nil {
		return nil, classify(fmt.Errorf("select dead letters: %w", err))
	}
	var (
		ids         []int64
		id          int64
		bytes, size int
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &bytes}, func() error {
		if size += bytes; size <= redriveBatchBytes || len(ids) == 0 {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, classify(fmt.Errorf("select dead letters: %w", err))
	}
	if len(ids) == 0 {
		return nil, nil
	}
	return readDeadLetters(ctx, q, ids)
}

// eventOf returns the event that a dead letter holds. Its type and time travel in
// headers if whoever gave it up has kept them.
func eventOf(d *DeadLetter) outbox.Message {
	m := outbox.Message{ID: d.TaskID, Type: d.TaskType, Topic: d.Topic, Key: string(d.Record.Key), Data: d.Record.Value, At: d.At}
	typed := false
	for _, h := range d.Record.Headers {
		switch {
		case strings.EqualFold(h.Key, "content-type"):
			m.ContentType, typed = string(h.Value), true
		case h.Key == "ce_time":
			if at, err := time.Parse(time.RFC3339Nano, string(h.Value)); err == nil {
				m.At = at
			}
		default:
			m.Headers = append(m.Headers, h)
		}
	}
	if !typed && json.Valid(m.Data) {
		m.ContentType = millrace.JSON
	}
	return m
}
