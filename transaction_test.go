package millrace_test

import (
	"context"
	"errors"
	"testing"

	"millrace"
)

// transactions opens what it is told to.
type transactions struct {
	errs  []error // of the next calls
	opens int
	// opening runs while one is opened.
	opening    func()
	rolledBack []error
}

func (s *transactions) BeginTurn(context.Context, *millrace.Turn) (millrace.Transaction, error) {
	s.opens++
	if s.opening != nil {
		s.opening()
	}
	if len(s.errs) > 0 {
		err := s.errs[0]
		s.errs = s.errs[1:]
		if err != nil {
			return nil, err
		}
	}
	return transaction{s}, nil
}

type transaction struct{ store *transactions }

func (transaction) Commit(context.Context, millrace.Completion) (millrace.Outcome, error) {
	return millrace.Committed, nil
}

func (t transaction) Rollback(_ context.Context, cause error) error {
	t.store.rolledBack = append(t.store.rolledBack, cause)
	return cause
}

func turnWith(s *transactions) *millrace.Turn {
	return millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "task"}, Transactions: s})
}

func called(context.Context) (millrace.StepResult, error) {
	return millrace.StepResult{Output: []byte("called")}, nil
}

func TestTurnOpensItsTransactionOnceAndOnlyWhenAsked(t *testing.T) {
	s := &transactions{}
	turn := turnWith(s)
	if tx, err := turn.EndTransaction(); tx != nil || err != nil || s.opens != 0 {
		t.Errorf("a turn that never asked: %v, %v, %d opened", tx, err, s.opens)
	}
	turn = turnWith(s)
	first, err := turn.Transaction(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if second, err := turn.Transaction(t.Context()); second != first || err != nil || s.opens != 1 {
		t.Errorf("second call: %v, %v, %d opened; want the first", second, err, s.opens)
	}
	if tx, err := turn.EndTransaction(); tx != first || err != nil {
		t.Errorf("at the end: %v, %v; want the first", tx, err)
	}
	if _, err := turn.Transaction(t.Context()); err == nil {
		t.Error("opened one after the end")
	}
	if tx, err := turn.EndTransaction(); tx != nil || err != nil {
		t.Errorf("at the second end: %v, %v", tx, err)
	}
}

func TestTurnWithoutADatabaseHasNoTransaction(t *testing.T) {
	turn := millrace.NewTurn(millrace.TurnConfig{})
	if _, err := turn.Transaction(t.Context()); !millrace.IsPermanent(err) {
		t.Errorf("got %v, want a permanent error", err)
	}
}

func TestAFailedTransactionSticksToItsTurnUntilOneIsOpened(t *testing.T) {
	out := millrace.Unavailable(errors.New("out"))
	s := &transactions{errs: []error{out, out}}
	turn := turnWith(s)
	if _, err := turn.Transaction(t.Context()); !errors.Is(err, out) {
		t.Fatalf("got %v", err)
	}
	// Without one, steps may go on.
	if _, err := turn.Step(t.Context(), "call", nil, called); err != nil {
		t.Errorf("step: %v", err)
	}
	if tx, err := turn.EndTransaction(); tx != nil || !errors.Is(err, out) {
		t.Errorf("at the end: %v, %v; want the error", tx, err)
	}

	turn = turnWith(s)
	if _, err := turn.Transaction(t.Context()); !errors.Is(err, out) {
		t.Fatalf("got %v", err)
	}
	if _, err := turn.Transaction(t.Context()); err != nil {
		t.Errorf("tried again: %v", err)
	}
	if tx, err := turn.EndTransaction(); tx == nil || err != nil {
		t.Errorf("at the end: %v, %v; want the transaction", tx, err)
	}
}

func TestATurnThatCannotCommitAnyMoreIsNotOpenedAgain(t *testing.T) {
	s := &transactions{errs: []error{&millrace.OutcomeError{Outcome: millrace.Conflict}}}
	turn := turnWith(s)
	for range 2 {
		var outcome *millrace.OutcomeError
		if _, err := turn.Transaction(t.Context()); !errors.As(err, &outcome) || outcome.Outcome != millrace.Conflict {
			t.Errorf("got %v", err)
		}
	}
	if s.opens != 1 {
		t.Errorf("opened %d times", s.opens)
	}
}

func TestStepsComeBeforeTheTransaction(t *testing.T) {
	s := &transactions{}
	turn := turnWith(s)
	if _, err := turn.Step(t.Context(), "before", nil, called); err != nil {
		t.Errorf("before: %v", err)
	}
	_, err := turn.Step(t.Context(), "during", nil, func(ctx context.Context) (millrace.StepResult, error) {
		_, err := turn.Transaction(ctx)
		return millrace.StepResult{}, err
	})
	if !errors.Is(err, millrace.ErrInTransaction) || !millrace.IsPermanent(err) || s.opens != 0 {
		t.Errorf("transaction opened in a step: %v, %d opened", err, s.opens)
	}
	var while error
	s.opening = func() { _, while = turn.Step(t.Context(), "while", nil, called) }
	if _, err := turn.Transaction(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(while, millrace.ErrInTransaction) {
		t.Errorf("step while it is opened: %v", while)
	}
	ran := false
	_, err = turn.Step(t.Context(), "after", nil, func(context.Context) (millrace.StepResult, error) {
		ran = true
		return millrace.StepResult{}, nil
	})
	if !errors.Is(err, millrace.ErrInTransaction) || !millrace.IsPermanent(err) || ran {
		t.Errorf("step after it: %v, ran %v", err, ran)
	}
}

func TestATransactionThatOpensAfterItsTurnHasEndedIsRolledBack(t *testing.T) {
	s := &transactions{}
	turn := turnWith(s)
	s.opening = func() {
		if tx, err := turn.EndTransaction(); tx != nil || err != nil {
			t.Errorf("at the end: %v, %v", tx, err)
		}
	}
	if tx, err := turn.Transaction(t.Context()); tx != nil || err == nil {
		t.Errorf("got %v, %v", tx, err)
	}
	if len(s.rolledBack) != 1 {
		t.Errorf("rolled back %d times, want 1", len(s.rolledBack))
	}
}
