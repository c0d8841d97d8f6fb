package statestore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"millrace"
)

var (
	//go:embed sql/erase_create.sql
	eraseCreateSQL string
	//go:embed sql/erase_lock.sql
	eraseLockSQL string
	//go:embed sql/erase_mark.sql
	eraseMarkSQL string
	//go:embed sql/erase_enqueue.sql
	eraseEnqueueSQL string
	//go:embed sql/erase_open.sql
	eraseOpenSQL string
	//go:embed sql/erase_hold.sql
	eraseHoldSQL string
	//go:embed sql/erase_messages.sql
	eraseMessagesSQL string
	//go:embed sql/erase_steps.sql
	eraseStepsSQL string
	//go:embed sql/erase_completions.sql
	eraseCompletionsSQL string
	//go:embed sql/erase_dead_letters.sql
	eraseDeadLettersSQL string
	//go:embed sql/erase_scheduled.sql
	eraseScheduledSQL string
	//go:embed sql/erase_done.sql
	eraseDoneSQL string
)

// eraseBudget is how long [Store.Erase] deletes before it leaves the rest to
// whoever comes next.
const eraseBudget = 2 * time.Second

// eraser erases conversations in two parts. The first is one short transaction: it
// makes the row a tombstone of a version that nobody has run a turn on, and notes
// that there is something to delete. From then on the conversation is empty to
// whoever reads it, and a turn that has read it before commits nothing. The second
// part deletes in batches; any number of processes may be at it, or die.
type eraser struct {
	pool *pgxpool.Pool
	hot  *hotCopies
	log  zerolog.Logger
	rows *prometheus.CounterVec // counts them by table; nil counts none
}

// Erase erases a conversation: history and state, results and errors of its tasks,
// steps, dead letters and the tasks that are held back until their time. That its tasks have ended stays known, because it keeps
// them from being run again. [millrace.ErrNotFound] says that there is no such
// conversation.
//
// It deletes for at most two seconds; what is left then is deleted by a
// [Retention], or by calling Erase again. To erase what is erased changes nothing.
func (s *Store) Erase(ctx context.Context, id string) (millrace.Erasure, error) {
	return s.eraser.erase(ctx, id)
}

func (e *eraser) erase(ctx context.Context, id string) (millrace.Erasure, error) {
	erasure, err := e.mark(ctx, id)
	if err != nil {
		return erasure, err
	}
	work, cancel := context.WithTimeout(ctx, eraseBudget)
	defer cancel()
	// The mark is durable: whatever keeps the rows from being deleted now does not
	// keep them for good.
	erasure.Done, err = e.finish(work, id)
	if err != nil && work.Err() == nil {
		e.log.Warn().Err(err).Str("conversation", id).Msg("the conversation is erased, but cannot be deleted yet; will try again")
	}
	return erasure, nil
}

// mark leaves the tombstone.
func (e *eraser) mark(ctx context.Context, id string) (millrace.Erasure, error) {
	erasure := millrace.Erasure{ConversationID: id}
	var version int64
	batch := &pgx.Batch{}
	batch.Queue(eraseCreateSQL, id)
	batch.Queue(eraseLockSQL, id)
	batch.Queue(eraseMarkSQL, id).QueryRow(func(row pgx.Row) error { return row.Scan(&version, &erasure.ErasedAt) })
	batch.Queue(eraseEnqueueSQL, id, true)
	err := e.pool.SendBatch(ctx, batch).Close()
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return erasure, fmt.Errorf("erase conversation %q: %w", id, millrace.ErrNotFound)
	case err != nil:
		return erasure, classify(fmt.Errorf("erase conversation %q: %w", id, err))
	}
	erasure.ErasedAt = erasure.ErasedAt.UTC()
	return erasure, nil
}

// tombstone is an erasure under way.
type tombstone struct {
	id          string
	version     int64
	erased      int64 // the last sequence number
	at          time.Time
	whole       bool
	deadLetters int64 // the last id
	first       int64 // sequence number of a message
}

// finish deletes what an erasure has left until nothing is left or ctx ends, and
// reports which.
func (e *eraser) finish(ctx context.Context, id string) (done bool, err error) {
	for {
		t := tombstone{id: id}
		err := e.pool.QueryRow(ctx, eraseOpenSQL, id).Scan(&t.version, &t.erased, &t.at, &t.whole, &t.deadLetters, &t.first)
		if errors.Is(err, pgx.ErrNoRows) {
			return true, nil
		}
		if err != nil {
			return false, classify(fmt.Errorf("read erasure: %w", err))
		}
		// Copies go first: they are what turns are run on. Without Redis the rows go
		// nevertheless, but the erasure stays open until the copy is gone as well.
		copies := e.forget(ctx, &t)
		if err := e.deleteAll(ctx, &t); err != nil {
			return false, errors.Join(copies, err)
		}
		if copies != nil {
			return false, copies
		}
		if _, err := e.pool.Exec(ctx, eraseDoneSQL, id, t.version, t.at); err != nil {
			return false, classify(fmt.Errorf("end erasure: %w", err))
		}
		// It is open again if the conversation was erased once more since.
	}
}

// forget replaces the hot copy and has workers drop theirs.
func (e *eraser) forget(ctx context.Context, t *tombstone) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	empty := millrace.Conversation{ID: t.id, Version: t.version, Erased: t.erased}
	if err := e.hot.bury(ctx, &empty); err != nil {
		return fmt.Errorf("erase hot copy: %w", err)
	}
	return e.hot.tellErased(ctx, millrace.Erased{Conversation: t.id, Version: t.version})
}

func (e *eraser) deleteAll(ctx context.Context, t *tombstone) error {
	p := newPace()
	for from := t.first; from <= t.erased; {
		to := min(from+int64(p.rows)-1, t.erased)
		n, err := e.batch(ctx, p, "messages", t.id, eraseMessagesSQL, from, to)
		if err != nil {
			return err
		}
		e.count("messages", n)
		from = to + 1
	}
	if !t.whole {
		return nil
	}
	if err := e.blankCompletions(ctx, p, t); err != nil {
		return err
	}
	for _, of := range []struct {
		table, sql string
		args       []any
	}{
		{"steps", eraseStepsSQL, []any{t.version, coalescedStep}},
		{"dead_letters", eraseDeadLettersSQL, []any{t.deadLetters}},
		{"scheduled", eraseScheduledSQL, []any{t.at}},
	} {
		for {
			rows := p.rows
			n, err := e.batch(ctx, p, of.table, t.id, of.sql, append(of.args, rows)...)
			if err != nil {
				return err
			}
			e.count(of.table, n)
			if n < int64(rows) {
				break
			}
		}
	}
	return nil
}

// blankCompletions empties completions, and drops the fingerprints of their tasks.
func (e *eraser) blankCompletions(ctx context.Context, p *pace, t *tombstone) error {
	var after millrace.Key
	for {
		rows := p.rows
		var ids []string
		batch := p.begin()
		batch.Queue(eraseHoldSQL, t.id)
		batch.Queue(eraseCompletionsSQL, t.id, t.at, after.ID, after.Redrive, rows).Query(func(rs pgx.Rows) error {
			var last, key millrace.Key
			_, err := pgx.ForEachRow(rs, []any{&key.ID, &key.Redrive}, func() error {
				ids = append(ids, key.ID)
				// The rows come in any order.
				if key.ID > last.ID || key.ID == last.ID && key.Redrive > last.Redrive {
					last = key
				}
				return nil
			})
			after = last
			return err
		})
		if err := p.run(ctx, e.pool, batch); err != nil {
			return fmt.Errorf("erase completions: %w", err)
		}
		e.count("completions", int64(len(ids)))
		if err := e.hot.dropFingerprints(ctx, ids); err != nil && ctx.Err() == nil {
			e.log.Warn().Err(err).Msg("fingerprints of an erased conversation stay until they run out, within a day")
		}
		if len(ids) < rows {
			return nil
		}
	}
}

func (e *eraser) batch(ctx context.Context, p *pace, table, id, sql string, args ...any) (n int64, err error) {
	batch := p.begin()
	batch.Queue(eraseHoldSQL, id)
	batch.Queue(sql, append([]any{id}, args...)...).Exec(func(tag pgconn.CommandTag) error {
		n = tag.RowsAffected()
		return nil
	})
	if err := p.run(ctx, e.pool, batch); err != nil {
		return 0, fmt.Errorf("erase %s: %w", table, err)
	}
	return n, nil
}

func (e *eraser) count(table string, n int64) {
	if e.rows != nil {
		e.rows.WithLabelValues(table).Add(float64(n))
	}
}
