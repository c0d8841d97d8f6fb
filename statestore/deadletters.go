package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace"
)

// ReasonEventUnpublishable is the reason of the dead letters that are no tasks:
// events that Kafka refused.
const ReasonEventUnpublishable = "event_unpublishable"

// DeadLetter is a dead letter with all that the table has of it. A list leaves
// Stack and Record out, but for where the record lay.
type DeadLetter struct {
	millrace.DeadLetterEntry
	Tenant string `json:"tenant,omitempty"`
	// Priority is what the task ran under. Empty: it is an event, or its completion
	// is gone.
	Priority millrace.Priority `json:"priority,omitempty"`
	// RedrivenAt is when it was put back. Zero: it waits.
	RedrivenAt time.Time `json:"redriven_at,omitzero"`
	// RedrivenAs is the redrive of the task that it was put back as.
	RedrivenAs int             `json:"redriven_as,omitempty"`
	Stack      string          `json:"-"`
	Record     millrace.Record `json:"-"`

	// HeadersErr says why the record's headers cannot be read. The table holds some
	// then that this module has not written.
	HeadersErr error `json:"-"`

	// ended says that the task's next run has been completed.
	ended bool
}

// IsEvent reports whether it is an event and not a task.
func (d *DeadLetter) IsEvent() bool { return d.Reason == ReasonEventUnpublishable }

// DeadLetterFilter selects dead letters. The zero value selects all that wait;
// every field that is set leaves some out.
type DeadLetterFilter struct {
	// IDs are the dead letters to choose from.
	IDs []int64
	// These must be equal.
	Reason, TaskType, Conversation, Tenant, Topic, TaskID string
	// Since and Until bound the time that they came at: from Since on, before Until.
	Since, Until time.Time
	// After and Last bound the ids: above After, up to Last.
	After, Last int64
	// Redriven selects those that were put back as well.
	Redriven bool
}

//go:embed sql/dead_letters_where.sql
var deadLettersWhereSQL string

func (f *DeadLetterFilter) args() pgx.NamedArgs {
	var ids []int64 // an empty list selects all, as nil does
	if len(f.IDs) > 0 {
		ids = f.IDs
	}
	return pgx.NamedArgs{
		"ids": ids, "after": f.After, "last": given(f.Last), "redriven": f.Redriven,
		"reason": given(f.Reason), "type": given(f.TaskType), "conversation": given(f.Conversation),
		"tenant": given(f.Tenant), "topic": given(f.Topic), "task": given(f.TaskID),
		"since": given(f.Since), "until": given(f.Until),
	}
}

// given returns nil for a zero value.
func given[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// DeadLetterStore reads dead letters and settles what becomes of them. Any number
// of them may be at work at once.
type DeadLetterStore struct {
	pool *pgxpool.Pool
}

// NewDeadLetterStore returns a store of the dead letters in a database.
func NewDeadLetterStore(pool *pgxpool.Pool) *DeadLetterStore { return &DeadLetterStore{pool: pool} }

//go:embed sql/dead_letters_list.sql
var deadLettersListSQL string

// List returns the first dead letters of a selection, in the order they came, and
// how many more there are. It reads no records.
func (s *DeadLetterStore) List(ctx context.Context, f DeadLetterFilter, limit int) (letters []DeadLetter, more int64, err error) {
	args := f.args()
	args["limit"] = limit
	rows, err := s.pool.Query(ctx, deadLettersListSQL+deadLettersWhereSQL+"ORDER BY d.id LIMIT @limit", args)
	if err != nil {
		return nil, 0, classify(fmt.Errorf("list dead letters: %w", err))
	}
	letters, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (DeadLetter, error) {
		var d DeadLetter
		err := d.scan(row)
		return d, err
	})
	if err != nil {
		return nil, 0, classify(fmt.Errorf("list dead letters: %w", err))
	}
	if len(letters) < limit || limit == 0 {
		return letters, 0, nil
	}
	f.After = letters[len(letters)-1].ID
	more, _, err = s.Count(ctx, f)
	return letters, more, err
}

// Count returns how many dead letters a selection has, and the highest id among
// them.
func (s *DeadLetterStore) Count(ctx context.Context, f DeadLetterFilter) (n, last int64, err error) {
	err = s.pool.QueryRow(ctx, "SELECT count(*), COALESCE(max(d.id), 0) FROM millrace.dead_letters d\n"+deadLettersWhereSQL, f.args()).Scan(&n, &last)
	if err != nil {
		return 0, 0, classify(fmt.Errorf("count dead letters: %w", err))
	}
	return n, last, nil
}

// Nth returns the id of the n-th dead letter of a selection, from 1, or
// [millrace.ErrNotFound] when it has fewer.
func (s *DeadLetterStore) Nth(ctx context.Context, f DeadLetterFilter, n int64) (id int64, err error) {
	args := f.args()
	args["before"] = n - 1
	err = s.pool.QueryRow(ctx, "SELECT d.id FROM millrace.dead_letters d\n"+deadLettersWhereSQL+"ORDER BY d.id OFFSET @before LIMIT 1", args).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("dead letter number %d of the selection: %w", n, millrace.ErrNotFound)
	}
	if err != nil {
		return 0, classify(fmt.Errorf("select dead letters: %w", err))
	}
	return id, nil
}

// Get returns one dead letter with its record, or [millrace.ErrNotFound].
func (s *DeadLetterStore) Get(ctx context.Context, id int64) (DeadLetter, error) {
	letters, err := readDeadLetters(ctx, s.pool, []int64{id})
	if err == nil && len(letters) == 0 {
		err = millrace.ErrNotFound
	}
	if err != nil {
		return DeadLetter{}, fmt.Errorf("dead letter %d: %w", id, err)
	}
	return letters[0], nil
}

// Drop deletes the dead letters of a selection and returns how many there were.
func (s *DeadLetterStore) Drop(ctx context.Context, f DeadLetterFilter) (int64, error) {
	tag, err := s.pool.Exec(ctx, "DELETE FROM millrace.dead_letters d\n"+deadLettersWhereSQL, f.args())
	if err != nil {
		return 0, classify(fmt.Errorf("drop dead letters: %w", err))
	}
	return tag.RowsAffected(), nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

//go:embed sql/dead_letters_read.sql
var deadLettersReadSQL string

// readDeadLetters returns dead letters with their records, in the order they came.
func readDeadLetters(ctx context.Context, q querier, ids []int64) ([]DeadLetter, error) {
	rows, err := q.Query(ctx, deadLettersReadSQL, ids)
	if err != nil {
		return nil, classify(fmt.Errorf("read dead letters: %w", err))
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (DeadLetter, error) {
		var (
			d       DeadLetter
			headers string
		)
		if err := d.scan(row, &d.Stack, &d.Record.Key, &d.Record.Value, &headers, &d.ended); err != nil {
			return d, err
		}
		d.Record.Headers, d.HeadersErr = decodeHeaders(headers)
		return d, nil
	})
	if err != nil {
		return nil, classify(fmt.Errorf("read dead letters: %w", err))
	}
	return letters, nil
}

// scan reads the columns of the list, and then more.
func (d *DeadLetter) scan(row pgx.CollectableRow, more ...any) error {
	var redrivenAt *time.Time
	err := row.Scan(append([]any{
		&d.ID, &d.TaskID, &d.Redrive, &d.ConversationID, &d.TaskType, &d.Reason, &d.Detail, &d.Attempts,
		&d.Topic, &d.Partition, &d.Offset, &d.At, &d.Tenant, &d.Priority, &redrivenAt, &d.RedrivenAs,
	}, more...)...)
	d.At = d.At.UTC()
	if redrivenAt != nil {
		d.RedrivenAt = redrivenAt.UTC()
	}
	d.Record.Topic, d.Record.Partition, d.Record.Offset = d.Topic, d.Partition, d.Offset
	return err
}

// decodeHeaders undoes [millrace/outbox.EncodeHeaders].
func decodeHeaders(text string) ([]millrace.Header, error) {
	var in []struct {
		Key   string `json:"k"`
		Value []byte `json:"v"`
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return nil, fmt.Errorf("decode headers: %w", err)
	}
	out := make([]millrace.Header, len(in))
	for i, h := range in {
		out[i] = millrace.Header{Key: h.Key, Value: h.Value}
	}
	return out, nil
}
