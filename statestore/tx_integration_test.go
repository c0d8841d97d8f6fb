//go:build integration

package statestore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"millrace"
)

// ordersDatabase has a table of a handler's own.
func ordersDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := newDatabase(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE orders (id text PRIMARY KEY, task text NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	return pool
}

func order(ctx context.Context, tx pgx.Tx, id, task string) error {
	_, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1, $2)`, id, task)
	return err
}

// turnOn returns a turn as an engine makes it.
func turnOn(s *Store, id string, conv millrace.Conversation) *millrace.Turn {
	return millrace.NewTurn(millrace.TurnConfig{
		Task:         millrace.Task{ID: id, Conversation: conv.ID, Type: "order", Priority: millrace.Normal},
		Conversation: conv, Journal: s, History: s, Transactions: s,
	})
}

// handle runs a handler in a turn and commits as an engine does.
func handle(t *testing.T, turn *millrace.Turn, c millrace.Completion, handler func(ctx context.Context, tx pgx.Tx) error) (millrace.Outcome, error) {
	t.Helper()
	tx, err := Tx(t.Context(), turn)
	if err == nil {
		err = handler(t.Context(), tx)
	}
	own, _ := turn.EndTransaction()
	if err != nil {
		if own != nil {
			err = own.Rollback(t.Context(), err)
		}
		return 0, err
	}
	return own.Commit(t.Context(), c)
}

func orders(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return count(t, pool, `SELECT count(*) FROM orders`)
}

// completions counts the tasks that are complete with all effects that
// [completion] has, and fails when one has others.
func completions(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	n := count(t, pool, `SELECT count(*) FROM millrace.completions`)
	for query, want := range map[string]int{
		`SELECT count(*) FROM millrace.messages`:                            n,
		`SELECT count(*) FROM millrace.outbox`:                              2 * n,
		`SELECT COALESCE(sum(version), 0)::int FROM millrace.conversations`: n,
	} {
		if got := count(t, pool, query); got != want {
			t.Errorf("%s: %d with %d completions, want %d", query, got, n, want)
		}
	}
	return n
}

func TestAHandlersRowsCommitWithItsTurn(t *testing.T) {
	pool := ordersDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	conv := millrace.Conversation{ID: "conv"}
	turn := turnOn(s, "task", conv)
	outcome, err := handle(t, turn, completion("task", conv), func(ctx context.Context, tx pgx.Tx) error {
		if err := order(ctx, tx, "o1", "task"); err != nil {
			return err
		}
		again, err := Tx(ctx, turn)
		if err != nil {
			return err
		}
		if err := order(ctx, again, "o2", "task"); err != nil {
			return err
		}
		part, err := again.Begin(ctx)
		if err != nil {
			return err
		}
		if err := order(ctx, part, "o3", "task"); err != nil {
			return err
		}
		if err := part.Rollback(ctx); err != nil {
			return err
		}
		if _, err := turn.History(ctx, 10); err != nil {
			return err
		}
		if n := orders(t, pool) + completions(t, pool); n != 0 {
			t.Errorf("others see %d rows before the turn has ended", n)
		}
		return nil
	})
	if outcome != millrace.Committed || err != nil {
		t.Fatalf("%v, %v", outcome, err)
	}
	if n := orders(t, pool); n != 2 {
		t.Errorf("%d rows, want the 2 that were not rolled back", n)
	}
	if n := completions(t, pool); n != 1 {
		t.Errorf("%d completions", n)
	}
	hot, err := s.Open(t.Context(), turn.Task())
	if err != nil || hot.Version != 1 || testutil.ToFloat64(s.metrics.opened.WithLabelValues("redis")) != 1 {
		t.Errorf("hot copy %+v, %v", hot, err)
	}
	// The next turn of the conversation shares a commit with others.
	mustCommit(t, s, completion("next", hot), millrace.Committed)
	checkFree(t, s)
}

// checkFree fails when a transaction has been left open.
func checkFree(t *testing.T, s *Store) {
	t.Helper()
	if n := testutil.ToFloat64(s.metrics.txOpen); n != 0 || len(s.txs) != 0 {
		t.Errorf("%v transactions open, %d connections taken", n, len(s.txs))
	}
	if n := s.cfg.Pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("%d connections in use", n)
	}
}

func TestAHandlerThatFailsLeavesNothing(t *testing.T) {
	pool := ordersDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t), TxIdleTimeout: 200 * time.Millisecond})
	no := errors.New("no")
	if _, err := pool.Exec(t.Context(), `ALTER TABLE orders ADD CONSTRAINT late UNIQUE (task) DEFERRABLE INITIALLY DEFERRED`); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		handler func(ctx context.Context, tx pgx.Tx) error
		want    string // in the error
	}{
		{"its error", func(context.Context, pgx.Tx) error { return no }, "no"},
		{"a statement that failed", func(ctx context.Context, tx pgx.Tx) error { return order(ctx, tx, "o1", "task") }, "duplicate key"},
		{"a statement that failed, ignored", func(ctx context.Context, tx pgx.Tx) error {
			_ = order(ctx, tx, "o1", "task")
			return nil
		}, "Begin a savepoint"},
		{"a constraint that is checked at the end", func(ctx context.Context, tx pgx.Tx) error { return order(ctx, tx, "o2", "task") }, "late"},
		{"rows left open", func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Query(ctx, `SELECT generate_series(1, 100000)`) //nolint:sqlclosecheck // that is the point
			return err
		}, "Close them"},
		{"a transaction that it ended", func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `ROLLBACK`)
			return err
		}, "ended it before"},
		{"a pause", func(context.Context, pgx.Tx) error {
			awaitNone(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)
			return nil
		}, "without a statement for 200ms"},
		{"a pause before a statement", func(ctx context.Context, tx pgx.Tx) error {
			awaitNone(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)
			return order(ctx, tx, "o2", "task")
		}, "without a statement for 200ms"},
		{"a step", func(ctx context.Context, _ pgx.Tx) error {
			_, err := turnOf(ctx).Step(ctx, "call", nil, func(context.Context) (millrace.StepResult, error) { return millrace.StepResult{}, nil })
			return err
		}, millrace.ErrInTransaction.Error()},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d", i)}
			turn := turnOn(s, fmt.Sprintf("task-%d", i), conv)
			outcome, err := handle(t, turn, completion(turn.Task().ID, conv), func(ctx context.Context, tx pgx.Tx) error {
				if err := order(ctx, tx, "o1", "task"); err != nil {
					return err
				}
				return tt.handler(context.WithValue(ctx, turnKey{}, turn), tx)
			})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, %v; want an error with %q", outcome, err, tt.want)
			}
			if millrace.IsUnavailable(err) {
				t.Errorf("%v passes for an outage: the handler would be run for ever", err)
			}
			if n := orders(t, pool) + completions(t, pool); n != 0 {
				t.Errorf("%d rows", n)
			}
			checkFree(t, s)
		})
	}
}

type turnKey struct{}

func turnOf(ctx context.Context) *millrace.Turn { return ctx.Value(turnKey{}).(*millrace.Turn) }

// awaitNone waits until a query counts nothing.
func awaitNone(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); count(t, pool, sql) > 0; {
		if time.Now().After(limit) {
			t.Fatalf("after 10 s: %s", sql)
		}
	}
}

func TestAHandlerDoesNotEndItsTransaction(t *testing.T) {
	pool := ordersDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	conv := millrace.Conversation{ID: "conv"}
	outcome, err := handle(t, turnOn(s, "task", conv), completion("task", conv), func(ctx context.Context, tx pgx.Tx) error {
		if err := tx.Commit(ctx); !errors.Is(err, ErrTurnsOwn) {
			t.Errorf("commit: %v", err)
		}
		if n := orders(t, pool); n != 0 {
			t.Error("committed")
		}
		defer func() {
			if err := tx.Rollback(ctx); !errors.Is(err, ErrTurnsOwn) {
				t.Errorf("rollback: %v", err)
			}
		}()
		return order(ctx, tx, "o1", "task")
	})
	if outcome != millrace.Committed || err != nil || orders(t, pool) != 1 {
		t.Errorf("%v, %v, %d rows; want what was deferred not to matter", outcome, err, orders(t, pool))
	}
}

func TestATransactionIsOfNoUseOnceItsTurnHasEnded(t *testing.T) {
	pool := ordersDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	var left pgx.Tx
	turn := turnOn(s, "task", millrace.Conversation{ID: "conv"})
	if _, err := handle(t, turn, completion("task", millrace.Conversation{ID: "conv"}), func(_ context.Context, tx pgx.Tx) error {
		left = tx
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := order(t.Context(), left, "o1", "task"); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("statement after the end: %v", err)
	}
	if _, err := Tx(t.Context(), turn); err == nil {
		t.Error("opened after the end")
	}
	checkFree(t, s)
}

// TestATurnThatCannotCommitIsToldBeforeItWrites: its transaction says so.
func TestATurnThatCannotCommitIsToldBeforeItWrites(t *testing.T) {
	pool := ordersDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	mustCommit(t, s, completion("first", millrace.Conversation{ID: "conv"}), millrace.Committed)
	unkeyed := completion("unkeyed", millrace.Conversation{})
	unkeyed.Effects = millrace.Effects{Result: []byte(`1`)}
	mustCommit(t, s, unkeyed, millrace.Committed)
	for _, tt := range []struct {
		id   string
		conv millrace.Conversation
		want millrace.Outcome
	}{
		{"first", millrace.Conversation{ID: "conv", Version: 1, Length: 1}, millrace.AlreadyCompleted},
		{"first", millrace.Conversation{ID: "conv"}, millrace.AlreadyCompleted},
		{"second", millrace.Conversation{ID: "conv"}, millrace.Conflict},
		{"second", millrace.Conversation{ID: "gone", Version: 3}, millrace.Conflict},
		{"unkeyed", millrace.Conversation{}, millrace.AlreadyCompleted},
	} {
		before := testutil.ToFloat64(s.metrics.outcomes.WithLabelValues(tt.want.String()))
		_, err := Tx(t.Context(), turnOn(s, tt.id, tt.conv))
		var outcome *millrace.OutcomeError
		if !errors.As(err, &outcome) || outcome.Outcome != tt.want || millrace.IsUnavailable(err) {
			t.Errorf("%s on version %d: %v, want %v", tt.id, tt.conv.Version, err, tt.want)
		}
		if n := testutil.ToFloat64(s.metrics.outcomes.WithLabelValues(tt.want.String())); n != before+1 {
			t.Errorf("%v was not counted", tt.want)
		}
	}
	checkFree(t, s)
}

// TestTwoRunsOfATaskLeaveOneSetOfRows: of a worker that was given up and the one
// that took over.
func TestTwoRunsOfATaskLeaveOneSetOfRows(t *testing.T) {
	pool := ordersDatabase(t)
	a, b := run(t, Config{Pool: pool, Redis: newRedis(t)}), run(t, Config{Pool: pool, Redis: newRedis(t)})
	for i := range 20 {
		id := fmt.Sprintf("task-%d", i)
		conv := millrace.Conversation{ID: id}
		c := completion(id, conv)
		if i%2 == 0 {
			conv = millrace.Conversation{}
			c = completion(id, conv)
			c.Effects = millrace.Effects{Result: []byte(`1`)}
		}
		var wg sync.WaitGroup
		won := make(chan struct{}, 2)
		for n, s := range []*Store{a, b} {
			wg.Go(func() {
				// No key of theirs keeps the two apart.
				outcome, err := handle(t, turnOn(s, id, conv), c, func(ctx context.Context, tx pgx.Tx) error {
					return order(ctx, tx, fmt.Sprintf("%s-%d", id, n), id)
				})
				var lost *millrace.OutcomeError
				switch {
				case err == nil && outcome == millrace.Committed:
					won <- struct{}{}
				case err == nil && outcome == millrace.AlreadyCompleted, errors.As(err, &lost) && lost.Outcome == millrace.AlreadyCompleted:
				default:
					t.Errorf("%s: %v, %v", id, outcome, err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Errorf("%s: %d runs committed", id, len(won))
		}
	}
	if n, tasks := orders(t, pool), count(t, pool, `SELECT count(DISTINCT task) FROM orders`); n != 20 || tasks != 20 {
		t.Errorf("%d rows of %d tasks, want one of each of 20", n, tasks)
	}
	checkFree(t, a)
	checkFree(t, b)
}

// TestTransactionsOfTurnsAndGroupCommitsNeverDeadlock has both meet in
// conversations, tasks and outbox keys. A retry would hide a deadlock, so this
// looks beneath it.
func TestTransactionsOfTurnsAndGroupCommitsNeverDeadlock(t *testing.T) {
	pool := ordersDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t), TxConns: 2})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	const conversations, rounds = 30, 6
	for round := range rounds {
		id := func(i int) string { return fmt.Sprintf("conv-%d", i) }
		c := func(i, worker int) millrace.Completion {
			// The same task in all of them, or one each.
			task := fmt.Sprintf("task-%d-%d", round, i)
			if i%2 == 0 {
				task += fmt.Sprintf("-%d", worker)
			}
			c := completion(task, millrace.Conversation{ID: id(i), Version: int64(round)})
			c.Effects.Events[0].Key = fmt.Sprintf("key-%d", (i*7+worker)%11)
			return c
		}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for worker := range 2 {
			var batch []*pendingCommit
			for _, i := range rng.Perm(conversations) {
				batch = append(batch, &pendingCommit{completion: c(i, worker)})
			}
			wg.Go(func() {
				<-start
				for few := range slices.Chunk(batch, 5) {
					if _, err := s.commitOnce(t.Context(), few); err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				}
			})
		}
		for worker := range 2 {
			order := rng.Perm(conversations)
			wg.Go(func() {
				<-start
				for _, i := range order {
					c := c(i, 2+worker)
					_, err := handle(t, turnOn(s, c.Task.ID, c.Base), c, func(ctx context.Context, tx pgx.Tx) error {
						_, err := tx.Exec(ctx, `INSERT INTO orders VALUES ($1, $2)`, c.Task.ID, c.Task.ID)
						return err
					})
					var lost *millrace.OutcomeError
					if err != nil && !errors.As(err, &lost) {
						t.Errorf("round %d: %v", round, err)
					}
				}
			})
		}
		close(start)
		wg.Wait()
	}
	if n := completions(t, pool); n != rounds*conversations {
		t.Errorf("%d completions, want one of each conversation in %d rounds", n, rounds)
	}
	if n := count(t, pool, `SELECT count(*) FROM orders LEFT JOIN millrace.completions k ON k.task_id = task WHERE k.task_id IS NULL`); n != 0 {
		t.Errorf("%d rows of turns that did not commit", n)
	}
	if n := orders(t, pool); n < rounds || n > rounds*(conversations-1) {
		t.Errorf("%d turns committed in transactions of their own: the two kinds did not meet", n)
	}
}

// TestATransactionThatIsLostInItsCommitIsSettled loses the connection between the
// handler's last statement and the end of the commit, up to the last byte.
func TestATransactionThatIsLostInItsCommitIsSettled(t *testing.T) {
	const plenty = 1 << 20
	for _, tt := range []struct {
		name string
		at   func(n int64) budget
		left func(budget) int64
		// last is within what COMMIT takes of it.
		last int64
		// known is whether the last cuts come after the commit.
		known bool
	}{
		{"answers", func(n int64) budget { return budget{Written: -1, Read: n} }, func(b budget) int64 { return b.Read }, 15, true},
		{"requests", func(n int64) budget { return budget{Written: n, Read: -1} }, func(b budget) int64 { return b.Written }, 10, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			direct := ordersDatabase(t)
			f := &faults{}
			s := run(t, Config{Pool: newFaultyPool(t, direct.Config(), f, 2), Redis: newRedis(t)})
			done := 0
			// try loses the connection after n bytes, and reports how many were left to come
			// and whether the turn has committed.
			try := func(n int64) (left int64, committed bool) {
				id := fmt.Sprintf("task-%03d", done)
				done += 2
				conv := millrace.Conversation{ID: id}
				c := completion(id, conv)
				c.StartedAt = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) // the same number of bytes every time
				c.FinishedAt = c.StartedAt
				write := func(ctx context.Context, tx pgx.Tx) error { return order(ctx, tx, id, id) }
				warm := millrace.Conversation{ID: "warm-" + id} // so that the statements are prepared
				if _, err := handle(t, turnOn(s, warm.ID, warm), completion(warm.ID, warm), func(ctx context.Context, tx pgx.Tx) error {
					return order(ctx, tx, warm.ID, warm.ID)
				}); err != nil {
					t.Fatal(err)
				}
				outcome, err := handle(t, turnOn(s, id, conv), c, func(ctx context.Context, tx pgx.Tx) error {
					defer f.arm(tt.at(n))
					return write(ctx, tx)
				})
				left = tt.left(f.left())
				f.arm(unlimited)
				is := count(t, direct, `SELECT count(*) FROM millrace.completions WHERE task_id = $1`, id)
				switch {
				case err == nil && outcome == millrace.Committed && is == 1:
					return left, true
				case millrace.IsUnavailable(err) && is == 0:
					// What the engine does then.
					if outcome, err := handle(t, turnOn(s, id, conv), c, write); outcome != millrace.Committed || err != nil {
						t.Fatalf("cut after %d bytes, run again: %v, %v", n, outcome, err)
					}
				default:
					t.Fatalf("cut after %d bytes: %v, %v; %d completions", n, outcome, err, is)
				}
				return left, false
			}
			left, _ := try(plenty)
			all := plenty - left
			for n := int64(0); n < all-tt.last; n += max(all/4, 1) {
				if _, committed := try(n); committed {
					t.Errorf("cut after %d of %d bytes, and committed", n, all)
				}
			}
			if n := testutil.ToFloat64(s.metrics.txUnknown); n > 1 {
				t.Errorf("%v outcomes were unknown before the commit", n)
			}
			for n := all - tt.last; n < all; n += 3 {
				if _, committed := try(n); committed != tt.known {
					t.Errorf("cut after %d of %d bytes: committed %v", n, all, committed)
				}
			}
			unknown := testutil.ToFloat64(s.metrics.txUnknown)
			t.Logf("%d bytes, %d cuts, %v unknown", all, f.cuts.Load(), unknown)
			if unknown < 3 {
				t.Errorf("%v outcomes were unknown, want those of the last cuts", unknown)
			}
			if n := completions(t, direct); n != orders(t, direct) || n != done {
				t.Errorf("%d completions, %d rows, want %d of each", n, orders(t, direct), done)
			}
			checkFree(t, s)
		})
	}
}

// TestALostCommitThatPostgreSQLHasYetToSeeIsWaitedFor: the transaction is still
// open there when its turn asks what became of it.
func TestALostCommitThatPostgreSQLHasYetToSeeIsWaitedFor(t *testing.T) {
	for _, conversation := range []string{"conv", ""} {
		for _, commits := range []bool{true, false} {
			t.Run(fmt.Sprintf("%q commits=%v", conversation, commits), func(t *testing.T) {
				pool := ordersDatabase(t)
				s := run(t, Config{Pool: pool, Redis: newRedis(t)})
				c := completion("task", millrace.Conversation{ID: conversation})
				if conversation == "" {
					c.Effects.State, c.Effects.Messages = nil, nil
				}
				p := &pendingCommit{completion: c}
				tx, err := pool.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback(context.Background()) }()
				if _, err := s.commitOn(t.Context(), tx, []*pendingCommit{p}); err != nil {
					t.Fatal(err)
				}
				type settled struct {
					outcome millrace.Outcome
					err     error
				}
				done := make(chan settled, 1)
				go func() {
					outcome, err := s.settleLost(t.Context(), p, errors.New("lost"))
					done <- settled{outcome, err}
				}()
				awaitBlocked(t, pool, 1)
				if commits {
					err = tx.Commit(t.Context())
				} else {
					err = tx.Rollback(t.Context())
				}
				if err != nil {
					t.Fatal(err)
				}
				got := <-done
				if commits && (got.outcome != millrace.Committed || got.err != nil) || !commits && !millrace.IsUnavailable(got.err) {
					t.Errorf("%v, %v", got.outcome, got.err)
				}
				want := 0
				if commits {
					want = 1
				}
				if n := count(t, pool, `SELECT count(*) FROM millrace.completions`); n != want {
					t.Errorf("%d completions, want %d: to ask leaves none", n, want)
				}
			})
		}
	}
}

// TestTransactionsOfTurnsLeaveConnectionsForOthers: they wait for each other, and a
// turn that gives up waiting is an outage and no failure.
func TestTransactionsOfTurnsLeaveConnectionsForOthers(t *testing.T) {
	cfg := ordersDatabase(t).Config()
	cfg.MaxConns = 2
	pool := newPool(t, cfg)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	held := turnOn(s, "held", millrace.Conversation{ID: "held"})
	if _, err := Tx(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Tx(short, turnOn(s, "waits", millrace.Conversation{ID: "waits"})); !millrace.IsUnavailable(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no connection to be had: %v", err)
	}
	// Group commits and reads have the other one.
	mustCommit(t, s, completion("other", millrace.Conversation{ID: "other"}), millrace.Committed)
	if _, err := s.History(t.Context(), "other", 1, 1); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			conv := millrace.Conversation{ID: fmt.Sprintf("conv-%d", i)}
			turn := turnOn(s, conv.ID, conv)
			outcome, err := handle(t, turn, completion(conv.ID, conv), func(ctx context.Context, tx pgx.Tx) error {
				_, err := turn.History(ctx, 5) // takes another connection meanwhile
				return errors.Join(err, order(ctx, tx, conv.ID, conv.ID))
			})
			if outcome != millrace.Committed || err != nil {
				t.Errorf("%s: %v, %v", conv.ID, outcome, err)
			}
		})
	}
	own, _ := held.EndTransaction()
	_ = own.Rollback(t.Context(), nil)
	wg.Wait()
	if n := orders(t, pool); n != 10 {
		t.Errorf("%d rows, want 10", n)
	}
	checkFree(t, s)
}

func TestAPoolOfOneHasNoTransactionsForTurns(t *testing.T) {
	cfg := newDatabase(t).Config()
	cfg.MaxConns = 1
	pool := newPool(t, cfg)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	if _, err := Tx(t.Context(), turnOn(s, "task", millrace.Conversation{ID: "conv"})); !millrace.IsPermanent(err) {
		t.Errorf("got %v", err)
	}
	if _, err := New(Config{Pool: pool, Redis: newRedis(t), TxConns: 1}); err == nil {
		t.Error("a share as large as the pool was accepted")
	}
}
