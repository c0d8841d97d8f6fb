package consumer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"millrace"
)

// ownTransactions opens transactions on a memory store and notes what becomes of
// them.
type ownTransactions struct {
	*memoryStore
	refuse   func(turn *millrace.Turn) error // asked before one is opened
	refused  func() error                    // asked before one commits
	outage   bool                            // says that the database was lost at a rollback
	mu       sync.Mutex
	happened []string
}

func (s *ownTransactions) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.happened = append(s.happened, fmt.Sprintf(format, args...))
}

func (s *ownTransactions) BeginTurn(_ context.Context, turn *millrace.Turn) (millrace.Transaction, error) {
	if s.refuse != nil {
		if err := s.refuse(turn); err != nil {
			return nil, err
		}
	}
	s.note("opened")
	return &ownTransaction{s}, nil
}

// Commit is how turns without one are committed.
func (s *ownTransactions) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	s.note("%s by the store", c.Status)
	return s.memoryStore.Commit(ctx, c)
}

type ownTransaction struct{ *ownTransactions }

func (s *ownTransaction) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	if s.refused != nil {
		if err := s.refused(); err != nil {
			s.note("failed")
			return 0, err
		}
	}
	s.note("%s in it", c.Status)
	return s.memoryStore.Commit(ctx, c)
}

func (s *ownTransaction) Rollback(_ context.Context, cause error) error {
	s.note("rolled back")
	if s.outage && cause != nil {
		return millrace.UnavailableDependency(millrace.Postgres, cause)
	}
	return cause
}

func TestATurnCommitsInItsOwnTransactionOrNotAtAll(t *testing.T) {
	late := func(ctx context.Context) { <-ctx.Done() }
	tests := []struct {
		name string
		// handle runs at the first attempt, after the transaction was opened.
		handle func(ctx context.Context) error
		end    error // how the turn is ended while it runs, if it is
		fail   error // what the first commit fails with
		outage bool
		want   []string
		// attempts are those of the completion.
		attempts int
	}{
		{name: "nil", handle: func(context.Context) error { return nil }, want: []string{"opened", "completed in it"}, attempts: 1},
		{
			name: "error", handle: func(context.Context) error { return errors.New("no") },
			want: []string{"opened", "rolled back", "opened", "completed in it"}, attempts: 2,
		},
		{
			name: "permanent error", handle: func(context.Context) error { return millrace.Permanent(errors.New("no")) },
			want: []string{"opened", "rolled back", "failed by the store"}, attempts: 1,
		},
		{
			name: "panic", handle: func(context.Context) error { panic("no") },
			want: []string{"opened", "rolled back", "opened", "completed in it"}, attempts: 2,
		},
		{
			name: "exit", handle: func(context.Context) error { runtime.Goexit(); return nil },
			want: []string{"opened", "rolled back", "opened", "completed in it"}, attempts: 2,
		},
		{
			name: "late", handle: func(ctx context.Context) error { late(ctx); return nil },
			want: []string{"opened", "rolled back", "opened", "completed in it"}, attempts: 2,
		},
		{
			name: "cancelled", handle: func(ctx context.Context) error { late(ctx); return nil }, end: millrace.ErrCancelled,
			want: []string{"opened", "rolled back"},
		},
		{
			name: "interrupted", handle: func(ctx context.Context) error { late(ctx); return nil }, end: millrace.ErrInterrupted,
			want: []string{"opened", "rolled back", "cancelled by the store"}, attempts: 1,
		},
		{
			name: "database lost", handle: func(context.Context) error { return errors.New("broken pipe") }, outage: true,
			want: []string{"opened", "rolled back", "opened", "completed in it"}, attempts: 1,
		},
		{
			name: "refused", handle: func(context.Context) error { return nil }, fail: errors.New("violates a constraint"),
			want: []string{"opened", "failed", "opened", "completed in it"}, attempts: 2,
		},
		{
			name: "lost in the commit", handle: func(context.Context) error { return nil },
			fail: millrace.UnavailableDependency(millrace.Postgres, errors.New("lost")),
			want: []string{"opened", "failed", "opened", "completed in it"}, attempts: 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &ownTransactions{memoryStore: newMemoryStore(), outage: tt.outage}
				fails := tt.fail
				store.refused = func() error {
					err := fails
					fails = nil
					return err
				}
				runs := 0
				o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					if _, err := turn.Transaction(ctx); err != nil {
						return err
					}
					if runs++; runs > 1 {
						return nil
					}
					return tt.handle(ctx)
				}, func(c *Config) { c.Transactions, c.TurnTimeout = store, 10*time.Second })
				o.assign(0)
				o.feed(t, 0, task("c", 0, millrace.Normal))
				if tt.end != nil {
					synctest.Wait()
					o.mu.Lock()
					for _, l := range o.running {
						l.endTurn(tt.end)
					}
					o.mu.Unlock()
				}
				eventually(t, "free", func() bool {
					synctest.Wait()
					return o.held() == 0
				})
				if !slices.Equal(store.happened, tt.want) {
					t.Errorf("happened %q, want %q", store.happened, tt.want)
				}
				if tt.attempts > 0 && (len(store.order) != 1 || store.order[0].Attempts != tt.attempts) {
					t.Errorf("completions %+v, want one after %d attempts", store.order, tt.attempts)
				}
			})
		})
	}
}

func TestATurnWhosePartitionIsLostRollsItsTransactionBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &ownTransactions{memoryStore: newMemoryStore()}
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			if _, err := turn.Transaction(ctx); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		}, func(c *Config) { c.Transactions = store })
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.lose(0)
		synctest.Wait()
		if want := []string{"opened", "rolled back"}; !slices.Equal(store.happened, want) {
			t.Errorf("happened %q, want %q", store.happened, want)
		}
	})
}

func TestATurnDoesNotCommitWithoutTheTransactionThatItAskedFor(t *testing.T) {
	tests := []struct {
		name     string
		refuse   error
		want     []string
		attempts int
	}{
		{"outage", millrace.UnavailableDependency(millrace.Postgres, errors.New("out")), []string{"opened", "completed in it"}, 1},
		{"refused", errors.New("no"), []string{"opened", "completed in it"}, 2},
		{"conflict", &millrace.OutcomeError{Outcome: millrace.Conflict}, []string{"opened", "completed in it"}, 1},
		{"completed elsewhere", &millrace.OutcomeError{Outcome: millrace.AlreadyCompleted}, nil, 0},
	}
	for _, tt := range tests {
		for _, ignored := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/ignored=%v", tt.name, ignored), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store := &ownTransactions{memoryStore: newMemoryStore()}
					asked := 0
					store.refuse = func(*millrace.Turn) error {
						if asked++; asked == 1 {
							return tt.refuse
						}
						return nil
					}
					o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
						_, err := turn.Transaction(ctx)
						if ignored {
							return nil
						}
						return err
					}, func(c *Config) { c.Transactions = store })
					o.assign(0)
					o.feed(t, 0, task("c", 0, millrace.Normal))
					eventually(t, "free", func() bool {
						synctest.Wait()
						return o.held() == 0
					})
					if !slices.Equal(store.happened, tt.want) {
						t.Errorf("happened %q, want %q", store.happened, tt.want)
					}
					if tt.attempts > 0 && (len(store.order) != 1 || store.order[0].Attempts != tt.attempts) {
						t.Errorf("completions %+v, want one after %d attempts", store.order, tt.attempts)
					}
				})
			})
		}
	}
}
