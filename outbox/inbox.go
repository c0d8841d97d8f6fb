package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// InboxSchema creates the table of an [Inbox] unless it is there: run it as it is,
// or make it a migration of the consumer's own. The table is looked up on the
// search path.
//
//go:embed sql/inbox.sql
var InboxSchema string

//go:embed sql/inbox_apply.sql
var inboxApplySQL string

//go:embed sql/inbox_forget.sql
var inboxForgetSQL string

// Inbox lets a program that reads events apply each to its own database once,
// however often it gets it: read in a group that starts over, published again in
// at-least-once mode, redriven. It is for consumers; Millrace itself has no table
// of this kind.
//
// Exactly once means the database that the inbox is in. What else a consumer does
// with an event can happen again.
type Inbox struct {
	// Consumer tells apart those who share a table and read the same events, each for
	// its own ends. Required.
	Consumer string
}

// Apply calls apply unless the event has been applied, and reports whether it did.
// The event counts as applied when tx commits: everything that belongs to it goes
// through tx. After an error tx has to be rolled back, and the event comes up again.
//
// The event id is the record's ce_id header. Of two transactions with the same
// event one waits until the other has ended; at isolation level serializable or
// repeatable read it fails then (SQLSTATE 40001) and has to be run again.
func (i Inbox) Apply(ctx context.Context, tx pgx.Tx, eventID string, apply func(context.Context, pgx.Tx) error) (applied bool, err error) {
	if i.Consumer == "" || eventID == "" {
		return false, fmt.Errorf("apply event %q for consumer %q: both must have a name", eventID, i.Consumer)
	}
	tag, err := tx.Exec(ctx, inboxApplySQL, i.Consumer, eventID)
	if err != nil {
		return false, fmt.Errorf("apply event %s: note it in the inbox: %w", eventID, err)
	}
	if tag.RowsAffected() == 0 {
		return false, nil
	}
	if err := apply(ctx, tx); err != nil {
		return false, fmt.Errorf("apply event %s: %w", eventID, err)
	}
	return true, nil
}

// forgetBatch is how many events one statement forgets: few enough to be done in
// some tens of milliseconds.
const forgetBatch = 2000

// Forget removes events that were applied longer ago than age and returns how many,
// also along with an error. Age has to exceed the time after which an event can come
// again: the retention of its topic, and of dead letters that may be redriven.
//
// It deletes in batches and rests after each for as long as it took. With a pool or
// a connection each is a transaction of its own; within a transaction of the caller
// they are one long one, which keeps vacuum from the whole database.
func (i Inbox) Forget(ctx context.Context, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, age time.Duration,
) (forgotten int64, err error) {
	if age <= 0 {
		return 0, errors.New("forget events: age must be positive")
	}
	for {
		began := time.Now()
		tag, err := db.Exec(ctx, inboxForgetSQL, i.Consumer, age, forgetBatch)
		if err != nil {
			return forgotten, fmt.Errorf("forget events: %w", err)
		}
		if forgotten += tag.RowsAffected(); tag.RowsAffected() < forgetBatch {
			return forgotten, nil
		}
		rest := time.NewTimer(time.Since(began))
		select {
		case <-ctx.Done():
			rest.Stop()
			return forgotten, fmt.Errorf("forget events: %w", ctx.Err())
		case <-rest.C:
		}
	}
}
