package consumer

import (
	"context"
	"time"

	"millrace"
)

// Busy policies are decided when a task comes to the lane of its conversation:
// the lane alone knows what runs and waits. What another pool runs of the
// conversation, it does not know.

// interrupt is a turn that is to be ended for a task.
type interrupt struct {
	lane   *lane
	target *item // that runs, or waits for its next attempt
	by     *item
}

// rejected applies the busy policy of an item that comes to a lane, and reports
// whether it is to go aside. Its caller holds the mutex.
func (e *Engine) rejected(l *lane, it *item) bool {
	if it.task.Conversation == "" || it.task.OnBusy == millrace.BusyEnqueue {
		return false
	}
	if l.fronts(it.task.Key()) {
		// The same task again, which a sender's repeat has put into the log: it must
		// neither complete nor end the turn that it repeats.
		it.lookUp = true
		return false
	}
	if it.task.OnBusy == millrace.BusyCoalesce {
		return false
	}
	target := l.current
	if !l.running {
		target = l.head()
	}
	switch {
	case it.task.OnBusy == millrace.BusyReject:
		if target == nil && !e.held(l, it) {
			return false
		}
		now := time.Now()
		it.final = &millrace.Completion{
			Task: it.task, Status: millrace.StatusFailed, Base: millrace.Conversation{ID: it.task.Conversation},
			Error:     "busy: another task of the conversation runs or waits",
			StartedAt: now, FinishedAt: now,
		}
		return true
	case target != nil && (l.running || target.attempts > 0 || target.journaled):
		// A repeat of a task that is done must end no turn, so it is looked up first.
		e.interrupts = append(e.interrupts, interrupt{lane: l, target: target, by: it})
		e.wakeRumours()
	}
	return false
}

// fronts reports whether a run of a task runs in the lane, or is first of what
// waits there. A task that was not rejected came to an empty lane, so that it is
// nowhere else.
func (l *lane) fronts(key millrace.Key) bool {
	if l.running && l.current.answers(key) || l.pinned != nil && l.pinned.answers(key) {
		return true
	}
	for i := range l.waiting {
		if it := l.waiting[i].first; it != nil && it.answers(key) {
			return true
		}
	}
	return false
}

// laneAside makes a lane for one item that does not wait for its conversation.
func (e *Engine) laneAside(it *item) *lane {
	e.unkeyed++
	key := laneKey{partition: it.part.tp.partition, unkeyed: e.unkeyed}
	l := newLane(key, len(e.cfg.Priorities))
	e.lanes[key] = l
	e.metrics.lanes.Set(float64(len(e.lanes)))
	return l
}

// interrupt ends what is to be ended, if it still runs or waits for its next
// attempt. Its caller holds the mutex.
func (e *Engine) interrupt(i interrupt, now time.Time) {
	l := i.lane
	switch {
	case i.target.part.revoked:
	case l.running && l.current == i.target:
		// It belongs to its slot, which may be giving it up: that comes first then.
		l.endTurn(millrace.ErrInterrupted)
	case !l.running && l.head() == i.target && i.target.final == nil && i.target.givenUp == nil:
		cause := millrace.ErrInterrupted
		i.target.endedBy.CompareAndSwap(nil, &cause)
		i.target.notBefore = now
		e.makeReady(l, now)
	}
}

// interrupted commits what an interrupted turn leaves: the messages that it has
// appended, its result and what it has used. State and events are those of a
// whole turn or none. A nil turn has not run.
func (e *Engine) interrupted(ctx context.Context, l *lane, it *item, turn *millrace.Turn, started, finishedAt time.Time) verdict {
	it.final = &millrace.Completion{
		Task: it.task, Status: millrace.StatusCancelled, Base: *l.conv, Attempts: it.attempts,
		Error:     "interrupted by a later task of the conversation",
		StartedAt: started, FinishedAt: finishedAt,
	}
	if turn != nil {
		collected := turn.Effects()
		it.final.Effects = millrace.Effects{Messages: collected.Messages, Result: collected.Result, Usage: collected.Usage}
		it.final.Attempts++
	}
	// Nothing of the conversation runs before it has committed.
	it.journaled = true
	return e.commitFinal(ctx, l, it)
}

// commitFinal commits the end of a task that gets no turn any more.
func (e *Engine) commitFinal(ctx context.Context, l *lane, it *item) verdict {
	c := it.final
	if l.conv != nil && l.conv.Version != c.Base.Version {
		// Somebody else has moved the conversation on, and a part of an answer has no
		// place in what it is now.
		c.Effects.Messages = nil
		if l.conv.Erased > c.Base.Erased { // nor has a result of what was erased
			c.Effects.Result = nil
		}
	}
	v := e.commit(ctx, l, it, *c)
	if v.committed && c.Status == millrace.StatusFailed {
		e.metrics.busy.WithLabelValues("rejected").Inc()
	} else if v.committed {
		e.metrics.busy.WithLabelValues("interrupted").Inc()
	}
	return v
}
