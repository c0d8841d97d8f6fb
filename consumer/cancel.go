package consumer

import (
	"context"
	"errors"
	"slices"
	"time"

	"millrace"
)

// A cancel is a completion that somebody else has committed: it wins by being
// there first, and a task that is read or run after that finds it at its commit
// at the latest. To be told of it saves the turn. What is told is a hint; before
// it ends or spares a turn, the completion is looked up.

// maxCancels bounds how many cancels are remembered for tasks that are yet to
// run.
const maxCancels = 65_536

// keySet holds the keys that were added last.
type keySet struct {
	keys  map[millrace.Key]struct{}
	order []millrace.Key // a ring, once it is full
	at    int
}

func (s *keySet) add(key millrace.Key) {
	if s.has(key) {
		return
	}
	if s.keys == nil {
		s.keys = make(map[millrace.Key]struct{})
	}
	s.keys[key] = struct{}{}
	if len(s.order) < maxCancels {
		s.order = append(s.order, key)
		return
	}
	delete(s.keys, s.order[s.at])
	s.order[s.at] = key
	s.at = (s.at + 1) % maxCancels
}

func (s *keySet) has(key millrace.Key) bool {
	if len(s.keys) == 0 {
		return false
	}
	_, found := s.keys[key]
	return found
}

// hearCancels listens until ctx ends.
func (e *Engine) hearCancels(ctx context.Context) {
	for try := 1; ctx.Err() == nil; try++ {
		began := time.Now()
		err := e.cfg.Cancels.WatchCancels(ctx, e.hear)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			try = 1
		}
		delay := fullJitter(200*time.Millisecond, 10*time.Second, try)
		e.log.Warn().Err(err).Dur("retry_in", delay).Msg("cannot hear of cancels; cancelled tasks that run go on, and commit nothing")
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// hear takes what is told. A task that waits is looked up when it is about to
// run; what its conversation holds back for it is not held back any longer.
func (e *Engine) hear(cancels []millrace.Cancel) {
	e.mu.Lock()
	defer e.mu.Unlock()
	told := make(map[millrace.Key]bool, len(cancels))
	numbers := make(map[int32]bool)
	for tp := range e.parts {
		numbers[tp.partition] = true
	}
	now := time.Now()
	for _, c := range cancels {
		if e.cancels.has(c.Key) {
			continue
		}
		e.cancels.add(c.Key)
		told[c.Key] = true
		if c.Conversation == "" {
			continue
		}
		for number := range numbers {
			l := e.lanes[laneKey{partition: number, conversation: c.Conversation}]
			if l == nil || l.running {
				continue
			}
			if it := l.head(); it != nil && it.task.Key() == c.Key && (it.notBefore.After(now) || l.parked != nil) {
				it.notBefore = now
				e.makeReady(l, now)
			}
		}
	}
	e.dispatch()
	for _, l := range e.running {
		if told[l.current.task.Key()] {
			l.current.rumoured = true
			e.wakeRumours()
		}
	}
}

func (e *Engine) wakeRumours() {
	signal(e.rumours)
}

// rumourLoop ends the turns of tasks that are cancelled indeed, and those that
// tasks interrupt which are not done yet.
func (e *Engine) rumourLoop(ctx context.Context) {
	for try := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-e.rumours:
		}
		if e.endRumoured(ctx) {
			try = 0
			continue
		}
		try++
		timer := time.NewTimer(fullJitter(200*time.Millisecond, 5*time.Second, try))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			e.wakeRumours()
		}
	}
}

// endRumoured looks up the running tasks that are said to be cancelled, and the
// tasks that are to interrupt others, and ends the turns that are to end. It
// reports whether the store answered.
func (e *Engine) endRumoured(ctx context.Context) bool {
	var (
		keys  []millrace.Key
		asked []*item
	)
	e.mu.Lock()
	for _, l := range e.running {
		if l.current.rumoured {
			keys, asked = append(keys, l.current.task.Key()), append(asked, l.current)
		}
	}
	interrupts := e.interrupts
	e.interrupts = nil
	e.mu.Unlock()
	for _, i := range interrupts {
		keys = append(keys, i.by.task.Key())
	}
	if len(keys) == 0 {
		return true
	}
	found, err := e.cfg.Store.Completed(ctx, keys)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.interrupts = append(interrupts, e.interrupts...)
		if ctx.Err() == nil {
			e.log.Warn().Err(err).Int("tasks", len(keys)).Msg("cannot look up whether turns are to be ended, will try again")
		}
		return false
	}
	for _, l := range e.running {
		it := l.current
		if !slices.Contains(asked, it) {
			continue // it may have become one while the store was asked
		}
		if it.rumoured && found[it.task.Key()] {
			l.endTurn(millrace.ErrCancelled)
		}
		it.rumoured = false
	}
	now := time.Now()
	for _, i := range interrupts {
		if !found[i.by.task.Key()] {
			e.interrupt(i, now)
		}
	}
	e.dispatch()
	return true
}

// endTurn ends the turn that the lane runs, for the first cause that it is given.
// Its caller holds the engine's mutex.
func (l *lane) endTurn(cause error) {
	if !l.current.endedBy.CompareAndSwap(nil, &cause) {
		return
	}
	if turn := l.turn.Load(); turn != nil {
		turn.cancel(cause)
	}
}

// stopped deals with a turn that was ended by a cancel or an interrupt.
func (e *Engine) stopped(ctx context.Context, l *lane, it *item, why error, turn *millrace.Turn, started, finishedAt time.Time) verdict {
	if errors.Is(why, millrace.ErrInterrupted) {
		return e.interrupted(ctx, l, it, turn, started, finishedAt)
	}
	// Who cancelled the task has completed it.
	e.metrics.turns.WithLabelValues(string(it.task.Priority), string(millrace.StatusCancelled)).Inc()
	return verdict{kind: finished}
}
