package statestore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace"
)

var (
	//go:embed sql/tx_lock.sql
	lockTurnSQL string
	//go:embed sql/tx_settle.sql
	settleSQL string
	//go:embed sql/tx_settled.sql
	settledSQL string
)

// ErrTurnsOwn is returned when a handler commits or rolls back the turn's
// transaction, which ends with the turn.
var ErrTurnsOwn = errors.New("the turn's transaction ends with the turn: return nil to commit it, an error to roll it back; " +
	"Begin a savepoint to undo a part")

// Tx returns a transaction for the tables of the handler's own. It commits when the
// turn does, together with its effects: after the handler has returned nil, and
// not at all when it returns an error, panics, runs out of time, or is cancelled,
// or another run of the task has committed. The first call opens it, further ones
// return the same.
//
// It is of isolation level read committed, and has the conversation locked: no
// other turn of it, on whatever worker, commits meanwhile. If the conversation has
// moved on since the turn read it, or the task is complete, Tx says so with a
// [millrace.OutcomeError]. The handler returns any error of Tx; one that it ignores
// fails the turn all the same.
//
// Calls come first and the transaction last: once it is open, [millrace.Turn.Step]
// is refused, and so are calls of LLMs, which are steps. PostgreSQL ends it when it
// waits for more than 5 s for its next statement ([Config.TxIdleTimeout]). It has a
// connection to itself, of which a worker has few ([Config.TxConns]): Tx waits for
// one, as long as ctx lets it. A cancel of the task waits for its end as well.
//
// Events go through [millrace.Turn.Emit]. When the connection is lost while the
// turn commits, PostgreSQL is asked whether it has; if not, the turn runs again,
// and the handler with it, at no attempt's cost.
func Tx(ctx context.Context, turn *millrace.Turn) (pgx.Tx, error) {
	opened, err := turn.Transaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("open the turn's transaction: %w", err)
	}
	own, ok := opened.(*turnTx)
	if !ok {
		return nil, millrace.Permanent(fmt.Errorf("open the turn's transaction: it is a %T, not one of a statestore.Store", opened))
	}
	return handlerTx{own.tx}, nil
}

// handlerTx is a turn's transaction as its handler has it.
type handlerTx struct{ pgx.Tx }

func (handlerTx) Commit(context.Context) error { return ErrTurnsOwn }

// Rollback does nothing: deferred, as it often is, it would undo what is to be
// committed.
func (handlerTx) Rollback(context.Context) error { return ErrTurnsOwn }

// turnTx is the transaction of one turn.
type turnTx struct {
	store *Store
	conn  *pgxpool.Conn
	tx    pgx.Tx
	since time.Time
	ended atomic.Bool
}

// BeginTurn implements [millrace.Transactions]. The conversation is locked first, as
// every commit does: so a handler's locks never stand in the way of a transaction
// that the turn itself has to wait for.
func (s *Store) BeginTurn(ctx context.Context, turn *millrace.Turn) (millrace.Transaction, error) {
	began := time.Now()
	if s.cfg.TxConns == 0 {
		return nil, millrace.Permanent(errors.New("the pool has one connection and none to spare for a transaction of a turn's own"))
	}
	select {
	case s.txs <- struct{}{}:
	case <-ctx.Done():
		return nil, millrace.Unavailable(fmt.Errorf("wait for one of the %d connections that turns may keep: %w", s.cfg.TxConns, context.Cause(ctx)))
	}
	conn, err := s.cfg.Pool.Acquire(ctx)
	if err != nil {
		<-s.txs
		return nil, classify(fmt.Errorf("get a connection: %w", err))
	}
	t := &turnTx{store: s, conn: conn, since: time.Now()}
	s.metrics.txOpen.Inc()
	if err := t.begin(ctx, turn); err != nil {
		t.rollback(ctx)
		var outcome *millrace.OutcomeError
		if errors.As(err, &outcome) {
			s.metrics.outcomes.WithLabelValues(outcome.Outcome.String()).Inc()
			return nil, err
		}
		return nil, classify(err)
	}
	s.metrics.txWait.Observe(time.Since(began).Seconds())
	return t, nil
}

func (t *turnTx) begin(ctx context.Context, turn *millrace.Turn) (err error) {
	if t.tx, err = t.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	var (
		task      = turn.Task()
		version   int64
		completed bool
	)
	sql := &pgx.Batch{}
	sql.Queue(`SELECT set_config('idle_in_transaction_session_timeout', $1, true)`,
		strconv.FormatInt(max(t.store.cfg.TxIdleTimeout.Milliseconds(), 1), 10)+"ms")
	if task.Conversation != "" {
		if turn.Version() == 0 {
			sql.Queue(createConversationsSQL, []string{task.Conversation})
		}
		sql.Queue(lockTurnSQL, task.Conversation).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&version)
			if errors.Is(err, pgx.ErrNoRows) {
				version, err = -1, nil // it is gone
			}
			return err
		})
	}
	// A statement of its own: it sees what was committed while the lock was waited for.
	sql.Queue(completedSQL, []string{task.ID}, []int32{int32(task.Redrive)}).Query(func(rows pgx.Rows) error { //nolint:gosec // bounded by the codec
		completed = rows.Next()
		rows.Close()
		return rows.Err()
	})
	if err := t.tx.SendBatch(ctx, sql).Close(); err != nil {
		return fmt.Errorf("lock the conversation: %w", err)
	}
	switch {
	case completed:
		return &millrace.OutcomeError{Outcome: millrace.AlreadyCompleted}
	case version != turn.Version():
		return &millrace.OutcomeError{Outcome: millrace.Conflict}
	}
	return nil
}

// Commit implements [millrace.Transaction].
func (t *turnTx) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	p := &pendingCommit{completion: c}
	outcome, open, err := t.commit(ctx, p)
	if open && ctx.Err() == nil {
		outcome, err = t.store.settleLost(ctx, p, err)
	}
	if err != nil {
		return 0, err
	}
	t.store.metrics.outcomes.WithLabelValues(outcome.String()).Inc()
	t.store.afterCommit(ctx, []*pendingCommit{p}, append([]millrace.Outcome(nil), outcome))
	return outcome, nil
}

// commit says whether it is open if the transaction has committed.
func (t *turnTx) commit(ctx context.Context, p *pendingCommit) (outcome millrace.Outcome, open bool, err error) {
	defer t.rollback(ctx) // nothing, once it has committed
	ctx, cancel := context.WithTimeout(ctx, t.store.cfg.CommitTimeout)
	defer cancel()
	if conn := t.conn.Conn().PgConn(); !conn.IsClosed() {
		switch {
		case conn.IsBusy():
			return 0, false, errors.New("commit the turn's transaction: the handler returned while rows of its transaction were open; Close them")
		case conn.TxStatus() == 'I':
			return 0, false, errors.New("commit the turn's transaction: a statement of the handler's has ended it before (COMMIT, ROLLBACK or another)")
		case conn.TxStatus() == 'E':
			return 0, false, errors.New("commit the turn's transaction: a statement has failed in it and the handler returned nil; " +
				"return the error, or Begin a savepoint for what may fail")
		}
	}
	outcomes, err := t.store.commitOn(ctx, t.tx, []*pendingCommit{p})
	if err != nil {
		return 0, false, t.classify(err)
	}
	if outcomes[0] != millrace.Committed {
		return outcomes[0], false, nil
	}
	if err := t.tx.Commit(ctx); err != nil {
		var pgErr *pgconn.PgError
		refused := errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR" || errors.Is(err, pgx.ErrTxCommitRollback)
		return 0, !refused, t.classify(fmt.Errorf("commit the turn's transaction: %w", err))
	}
	return millrace.Committed, false, nil
}

// Rollback implements [millrace.Transaction].
func (t *turnTx) Rollback(ctx context.Context, cause error) error {
	lost := t.conn.Conn().IsClosed()
	t.rollback(ctx)
	if cause == nil || !lost || millrace.IsPermanent(cause) || errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return t.classify(cause)
}

// sqlIdle is the state of a transaction that has waited for too long.
const sqlIdle = "25P03"

// classify is [classify], but for what is the handler's doing.
func (t *turnTx) classify(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == sqlIdle {
		return fmt.Errorf("the handler left its transaction without a statement for %s: %w", t.store.cfg.TxIdleTimeout, err)
	}
	return classify(err)
}

// rollback ends the transaction, whatever has become of it, and gives the
// connection back.
func (t *turnTx) rollback(ctx context.Context) {
	if t.ended.Swap(true) {
		return
	}
	if t.tx != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = t.tx.Rollback(ctx) // a connection that it fails on is closed, and PostgreSQL rolls back
	}
	t.conn.Release()
	t.store.metrics.txOpen.Dec()
	t.store.metrics.txLasted.Observe(time.Since(t.since).Seconds())
	<-t.store.txs
}

// settleLost finds out what has become of a transaction that was lost in its commit.
// To send it again, as group commits do, is not possible: a part of it was the
// handler's.
func (s *Store) settleLost(ctx context.Context, p *pendingCommit, lost error) (millrace.Outcome, error) {
	s.metrics.txUnknown.Inc()
	s.log.Warn().Err(lost).Str("task", p.completion.Task.ID).Msg("connection lost in the commit of a turn's own transaction, asking what became of it")
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 20*time.Millisecond, time.Second
	by, err := backoff.Retry(ctx, func() (uuid.UUID, error) {
		return s.completedBy(ctx, p.completion.Task.Key())
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(s.cfg.CommitTimeout))
	switch {
	case err != nil:
		return 0, err
	case by == uuid.Nil:
		return 0, classify(fmt.Errorf("the turn's transaction did not commit and is run again: %w", lost))
	case by == p.tokens[0]:
		return millrace.Committed, nil
	}
	return millrace.AlreadyCompleted, nil
}

// completedBy returns the token of a task's completion, uuid.Nil if there is none
// and no transaction is about to commit one.
func (s *Store) completedBy(ctx context.Context, key millrace.Key) (by uuid.UUID, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	tx, err := s.cfg.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return by, classify(fmt.Errorf("look up completion: %w", err))
	}
	defer func() {
		ctx, cancel := outlive(ctx)
		defer cancel()
		_ = tx.Rollback(ctx) // closes the connection if it fails
	}()
	none := uuid.New()
	sql := &pgx.Batch{}
	sql.Queue(settleSQL, key.ID, key.Redrive, none)
	sql.Queue(settledSQL, key.ID, key.Redrive).QueryRow(func(row pgx.Row) error { return row.Scan(&by) })
	if err := tx.SendBatch(ctx, sql).Close(); err != nil {
		return by, classify(fmt.Errorf("look up completion: %w", err))
	}
	if by == none {
		return uuid.Nil, nil
	}
	return by, nil
}
