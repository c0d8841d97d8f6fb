package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"millrace"
)

// verdict says what becomes of an item after its slot has dealt with it.
type verdict struct {
	kind  verdictKind
	delay time.Duration
	// committed says that it was this run that finished the task.
	committed bool
}

type verdictKind int

const (
	// finished: the task is done, here or elsewhere; its offset is done.
	finished verdictKind = iota
	// retry: the item stays in its lane and runs again after a delay.
	retry
	// dropped: the partition's next owner deals with it.
	dropped
)

// process takes an item as far as it goes now. It is the only place that runs a
// handler. It was picked at now.
func (e *Engine) process(l *lane, it *item, now time.Time) verdict {
	ctx := it.part.ctx
	if it.invalid != nil {
		return e.giveUp(ctx, l, it, it.invalid.Reason, it.invalid.Detail, "")
	}
	if d := it.givenUp; d != nil {
		return e.giveUp(ctx, l, it, d.Reason, d.Detail, d.Stack)
	}
	if it.final != nil {
		return e.commitFinal(ctx, l, it)
	}
	if it.lookUp {
		found, err := e.cfg.Store.Completed(ctx, []millrace.Key{it.task.Key()})
		if err != nil {
			return e.outage(ctx, it, err)
		}
		if found[it.task.Key()] {
			e.metrics.redeliveries.Inc()
			return verdict{kind: finished}
		}
		it.lookUp = false
		now = time.Now()
	}
	if it.recall || it.deaths != "" {
		if v, done := e.examine(ctx, l, it); done {
			return v
		}
		now = time.Now()
	}
	if l.run.early {
		e.markNow(ctx, l)
		now = time.Now()
	}
	if it.attempts >= e.maxAttempts(it) {
		// It is not known any more how the last one failed: its worker died before it
		// could commit that.
		return e.giveUp(ctx, l, it, millrace.ReasonAttemptsExhausted, "the attempts were spent before the worker that tried them died", "")
	}
	if d := it.task.Deadline; !d.IsZero() && !now.Before(d) {
		return e.giveUp(ctx, l, it, millrace.ReasonDeadlineExceeded, "the deadline passed before the task could run: "+d.Format(time.RFC3339), "")
	}
	if e.shared(l) {
		if !e.takeLease(ctx, l, it) {
			return verdict{kind: retry}
		}
		now = time.Now()
	}
	if it.task.OnBusy == millrace.BusyCoalesce {
		if v, done := e.coalesce(ctx, l, it, now); done {
			return v
		}
		now = time.Now()
	}
	if l.conv == nil {
		conv, err := e.cfg.Store.Open(ctx, &it.task)
		if err != nil {
			return e.outage(ctx, it, err)
		}
		l.conv = &conv
		now = time.Now()
	}
	return e.runTurn(ctx, l, it, now)
}

// runTurn runs the handler once and commits what it did.
func (e *Engine) runTurn(ctx context.Context, l *lane, it *item, started time.Time) verdict {
	prio := string(it.task.Priority)
	turn := millrace.NewTurn(millrace.TurnConfig{
		Task: it.task, Coalesced: it.coalesced(), Conversation: *l.conv, Attempt: it.attempts + 1,
		History: e.cfg.History, Journal: e.cfg.Journal, Dependencies: &e.breakers, Transactions: e.cfg.Transactions,
	})
	if it.attempts == 0 && it.outages == 0 && !it.task.Time.IsZero() {
		e.metrics.byPriority[it.priority].queueWait.Observe(started.Sub(it.task.Time).Seconds())
	}
	if why := it.endedBy.Load(); why != nil {
		return e.stopped(ctx, l, it, *why, nil, started, started)
	}
	stack, finishedAt, endedBy, err := e.handle(ctx, l, it, turn, started)
	it.journaled = it.journaled || turn.Journaled()
	timedOut := errors.Is(endedBy, context.DeadlineExceeded)
	if err == nil && timedOut {
		err = e.lateError(it)
	}
	own, unopened := turn.EndTransaction()
	if own != nil && (err != nil || endedBy != nil || ctx.Err() != nil) {
		// Before anything else: it has the lock that other commits of the conversation
		// need.
		err, own = own.Rollback(ctx, err), nil
	}
	if err == nil {
		err = unopened // the handler went on without it
	}
	completion := millrace.Completion{
		Task: it.task, Status: millrace.StatusCompleted, Base: *l.conv, Attempts: it.attempts + 1,
		StartedAt: started, FinishedAt: finishedAt,
	}
	var lost *millrace.OutcomeError
	e.metrics.byPriority[it.priority].turnSeconds.Observe(finishedAt.Sub(started).Seconds())

	switch {
	case ctx.Err() != nil:
		// The partition has gone, or the worker is going: another owner runs the task,
		// and must find nothing of this run but its journal.
		e.metrics.turns.WithLabelValues(prio, "interrupted").Inc()
		return verdict{kind: dropped}
	case errors.Is(endedBy, millrace.ErrCancelled), errors.Is(endedBy, millrace.ErrInterrupted):
		return e.stopped(ctx, l, it, endedBy, turn, started, finishedAt)
	case err == nil:
		if it.probing {
			e.breakers.passed(it)
		}
		completion.Effects = turn.Effects()
		return e.commitIn(ctx, l, it, completion, own)
	case errors.As(unopened, &lost):
		return e.conclude(ctx, l, it, completion, lost.Outcome)
	case millrace.IsUnavailable(err) && (!timedOut || !errors.Is(err, context.DeadlineExceeded)):
		// A dependency that fails because the turn's own time is up is not out: such a
		// turn would come back for ever.
		return e.unavailable(ctx, l, it, err, stack)
	case it.strayed(err):
		return verdict{kind: retry}
	}
	return e.failed(ctx, l, it, err, stack)
}

// handle calls the handler with its time limits. A panic becomes an error here
// and nowhere else. It reports when the handler returned, and what had ended its
// context by then.
func (e *Engine) handle(ctx context.Context, l *lane, it *item, turn *millrace.Turn, started time.Time) (stack string, at time.Time, endedBy, err error) {
	limit := started.Add(e.cfg.turnTimeout(it.task.Type))
	if d := it.task.Deadline; !d.IsZero() && d.Before(limit) {
		limit = d
	}
	turnCtx := newTurnContext(ctx, limit)
	turnCtx.started, turnCtx.attempt = started, turn.Attempt()
	l.turn.Store(turnCtx)
	returned := false
	// Whoever sets endedBy looks for the context after it: one of the two sees the
	// other.
	if why := it.endedBy.Load(); why != nil {
		turnCtx.cancel(*why)
	}
	defer func() {
		if !returned {
			stack = string(debug.Stack())
			if r := recover(); r != nil {
				err = fmt.Errorf("handler panicked: %v", r)
				e.log.Error().Str("task", it.task.ID).Str("stack", stack).Msgf("handler panicked: %v", r)
			} else {
				noteExit(it, turn, stack)
				if own, _ := turn.EndTransaction(); own != nil {
					_ = own.Rollback(ctx, errExited)
				}
			}
		}
		l.turn.Store(nil)
		at = time.Now()
		endedBy = turnCtx.end(at)
	}()
	err = e.cfg.Handler.Handle(turnCtx, turn)
	returned = true
	return "", at, nil, err
}

// maxRetryAfter bounds how long a handler can make its conversation wait.
const maxRetryAfter = time.Hour

// failed decides whether a failed turn gets another attempt.
func (e *Engine) failed(ctx context.Context, l *lane, it *item, err error, stack string) verdict {
	it.attempts++
	e.noteFailed(it)
	it.lastError = err
	prio := string(it.task.Priority)
	if d := it.task.Deadline; !d.IsZero() && !time.Now().Before(d) {
		return e.giveUp(ctx, l, it, millrace.ReasonDeadlineExceeded, err.Error(), stack)
	}
	if millrace.IsPermanent(err) {
		return e.giveUp(ctx, l, it, millrace.ReasonPermanent, err.Error(), stack)
	}
	limit := e.maxAttempts(it)
	if it.attempts >= limit {
		return e.giveUp(ctx, l, it, millrace.ReasonAttemptsExhausted, err.Error(), stack)
	}
	delay := fullJitter(e.cfg.RetryMin, e.cfg.RetryMax, it.attempts)
	var after *millrace.RetryAfterError
	if errors.As(err, &after) {
		delay = min(after.Delay, maxRetryAfter)
	}
	if d := it.task.Deadline; !d.IsZero() {
		delay = min(delay, time.Until(d)) // to be given up in time
	}
	e.metrics.turns.WithLabelValues(prio, "retried").Inc()
	e.log.Warn().Err(err).Str("task", it.task.ID).Str("conversation", it.task.Conversation).
		Int("attempt", it.attempts).Int("of", limit).Dur("retry_in", delay).Msg("turn failed")
	return verdict{kind: retry, delay: delay}
}

// maxAttempts is how often the task's handler is tried.
func (e *Engine) maxAttempts(it *item) int { return cmp.Or(it.task.MaxAttempts, e.cfg.MaxAttempts) }

// fullJitter returns a random part of low doubled with every attempt, up to
// high ("full jitter" of the AWS Architecture Blog, Exponential Backoff And
// Jitter).
func fullJitter(low, high time.Duration, attempt int) time.Duration {
	limit := low
	for range attempt - 1 {
		if limit >= high/2 { // doubling it could overflow
			limit = high
			break
		}
		limit *= 2
	}
	return rand.N(min(limit, high)) + 1 //nolint:gosec // spreads retries, guards nothing
}

// giveUp makes the task a dead letter. Its handler does not run again, even
// when an outage puts the commit off.
func (e *Engine) giveUp(ctx context.Context, l *lane, it *item, reason, detail, stack string) verdict {
	it.givenUp = &millrace.DeadLetter{Reason: reason, Detail: detail, Stack: stack, Record: it.record()}
	now := time.Now()
	conv := millrace.Conversation{ID: it.task.Conversation}
	if l.conv != nil {
		conv = *l.conv
	}
	v := e.commit(ctx, l, it, millrace.Completion{
		Task: it.task, Status: millrace.StatusFailed, Base: conv, Attempts: it.attempts,
		Error: reason + ": " + detail, DeadLetter: it.givenUp,
		StartedAt: now, FinishedAt: now,
	})
	if v.committed {
		e.metrics.deadLetters.WithLabelValues(reason).Inc()
		e.log.Error().Str("task", it.task.ID).Str("conversation", it.task.Conversation).Str("reason", reason).
			Str("detail", detail).Str("topic", it.part.tp.topic).Int32("partition", it.part.tp.partition).
			Int64("offset", it.offset).Msg("task given up; it is in the dead letters")
	}
	return v
}

// commit hands a completion in and moves the lane's conversation on.
func (e *Engine) commit(ctx context.Context, l *lane, it *item, c millrace.Completion) verdict {
	return e.commitIn(ctx, l, it, c, nil)
}

// commitIn is commit in a transaction of the turn's own, if there is one.
func (e *Engine) commitIn(ctx context.Context, l *lane, it *item, c millrace.Completion, own millrace.Transaction) verdict {
	c.Also = it.also(c.DeadLetter)
	var (
		outcome millrace.Outcome
		err     error
	)
	if own != nil {
		outcome, err = own.Commit(ctx, c)
	} else {
		outcome, err = e.cfg.Store.Commit(ctx, c)
	}
	if err != nil {
		if millrace.IsUnavailable(err) || ctx.Err() != nil {
			l.conv = nil // it may have committed after all
			it.lookUp = true
			return e.outage(ctx, it, err)
		}
		if c.DeadLetter != nil {
			// Nothing that is left of the task can be the reason any more.
			return e.outage(ctx, it, err)
		}
		if own != nil {
			// Half of it is the handler's: what PostgreSQL refuses may come from there, and
			// go as it came.
			return e.failed(ctx, l, it, err, "")
		}
		it.attempts++
		return e.giveUp(ctx, l, it, millrace.ReasonEffectsRefused, err.Error(), "")
	}
	if !c.Effects.Empty() { // others may not have gone as far as PostgreSQL
		e.postgres.hear()
	}
	return e.conclude(ctx, l, it, c, outcome)
}

// conclude deals with what the store says of a completion.
func (e *Engine) conclude(ctx context.Context, l *lane, it *item, c millrace.Completion, outcome millrace.Outcome) verdict {
	prio := string(it.task.Priority)
	switch outcome {
	case millrace.Committed:
		if c.Status == millrace.StatusCompleted {
			e.metrics.byPriority[it.priority].completed.Inc()
		} else {
			e.metrics.turns.WithLabelValues(prio, string(c.Status)).Inc()
		}
		if c.Task.Conversation != "" && c.Effects.Touches() {
			next := c.Base.After(&c.Task, &c.Effects, c.FinishedAt)
			l.conv = &next
		}
		return verdict{kind: finished, committed: true}
	case millrace.AlreadyCompleted:
		e.countSecondRun(&c)
		e.metrics.redeliveries.Inc()
		e.metrics.turns.WithLabelValues(prio, "already_completed").Inc()
		l.conv = nil
		return verdict{kind: finished}
	case millrace.Conflict:
		e.countSecondRun(&c)
		e.metrics.turns.WithLabelValues(prio, "conflict").Inc()
		conv, err := e.cfg.Store.Reload(ctx, &it.task)
		if err != nil {
			l.conv = nil
			return e.outage(ctx, it, err)
		}
		l.conv = &conv
		return verdict{kind: retry}
	}
	panic(fmt.Sprintf("store returned %v", outcome))
}

// countSecondRun counts a turn that ran beside another one, or behind its back:
// the other one has committed.
func (e *Engine) countSecondRun(c *millrace.Completion) {
	e.mu.Lock()
	cancelled := e.cancels.has(c.Task.Key())
	e.mu.Unlock()
	if c.DeadLetter == nil && !cancelled {
		e.metrics.secondRuns.Inc()
	}
}
