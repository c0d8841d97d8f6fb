package millrace

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Transaction is a database transaction that belongs to one turn: what its
// handler writes in it commits together with the turn's effects.
type Transaction interface {
	// Commit adds the completion to the transaction and commits it, or rolls all of
	// it back and says why. An error that is [IsUnavailable] leaves the outcome open.
	// Any other says that it was rolled back for what is in it.
	Commit(ctx context.Context, c Completion) (Outcome, error)
	// Rollback undoes all that was written. It returns why the turn ends, as it is or
	// marked as an outage ([IsUnavailable]) when the database was lost.
	Rollback(ctx context.Context, cause error) error
}

// Transactions opens transactions for turns.
type Transactions interface {
	// BeginTurn opens one. An [OutcomeError] says that the turn could not commit any
	// more.
	BeginTurn(ctx context.Context, turn *Turn) (Transaction, error)
}

// OutcomeError says how a turn has ended before it could commit: another run of
// its task has committed, or its conversation has moved on. The handler returns;
// whatever it returns, the worker does what there is to be done.
type OutcomeError struct {
	Outcome Outcome
}

func (e *OutcomeError) Error() string {
	if e.Outcome == AlreadyCompleted {
		return "another run of the task has committed"
	}
	return "the conversation has moved on since the turn read it; the turn runs anew"
}

// ErrInTransaction is returned for a step that begins, or goes on, while the turn
// has a transaction. A call may take long, and the transaction would keep its
// locks meanwhile: steps come first.
var ErrInTransaction = errors.New("a turn makes its calls before it opens its transaction")

var errNoTransactions = errors.New("this turn has no database to open a transaction in: TurnConfig.Transactions is not set")

// ownTransaction is a turn's part in this. Engines ask at the end of every turn, of
// which most have none: the state is read without a lock.
type ownTransaction struct {
	begin   Transactions
	opening sync.Mutex
	state   atomic.Pointer[opened]
}

// opened is what became of opening a transaction.
type opened struct {
	tx  Transaction
	err error
}

var turnOver = opened{err: errors.New("the turn has ended")}

// Transaction returns the turn's transaction and opens it at the first call. It is
// for stores, which have a call of their own for handlers. An error sticks to the
// turn, which does not commit then, unless a later call succeeds.
func (t *Turn) Transaction(ctx context.Context) (Transaction, error) {
	if t.own.begin == nil {
		return nil, Permanent(errNoTransactions)
	}
	t.own.opening.Lock()
	defer t.own.opening.Unlock()
	before := t.own.state.Load()
	if before != nil {
		var outcome *OutcomeError
		if before.tx != nil || before == &turnOver || errors.As(before.err, &outcome) {
			return before.tx, before.err
		}
	}
	if err := t.closeSteps(); err != nil {
		return nil, err
	}
	tx, err := t.own.begin.BeginTurn(ctx, t)
	if err != nil {
		t.reopenSteps()
	}
	if !t.own.state.CompareAndSwap(before, &opened{tx, err}) {
		// The handler has returned and left the goroutine that is here behind.
		if err == nil {
			_ = tx.Rollback(ctx, turnOver.err)
		}
		return nil, turnOver.err
	}
	return tx, err
}

// EndTransaction is for engines, once the handler has returned. It returns the
// transaction that the turn has opened, or the error with which that failed, or
// neither. None can be opened after that.
func (t *Turn) EndTransaction() (Transaction, error) {
	if t.own.begin == nil {
		return nil, nil //nolint:nilnil // most turns have none
	}
	before := t.own.state.Swap(&turnOver)
	if before == nil || before == &turnOver {
		return nil, nil //nolint:nilnil // most turns have none
	}
	return before.tx, before.err
}

// beginStep counts a step in, unless it comes too late.
func (t *Turn) beginStep() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stepsClosed {
		return Permanent(ErrInTransaction)
	}
	t.stepping++
	return nil
}

func (t *Turn) endStep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stepping--
}

func (t *Turn) closeSteps() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stepping > 0 {
		return Permanent(fmt.Errorf("open transaction while a step runs: %w", ErrInTransaction))
	}
	t.stepsClosed = true
	return nil
}

func (t *Turn) reopenSteps() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stepsClosed = false
}
