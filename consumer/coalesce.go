package consumer

import (
	"context"
	"errors"
	"slices"
	"time"

	"millrace"
)

// One turn answers several tasks of a conversation that wait next to each other
// and say that they may be answered so: that of the first of them, its leader.
// Which tasks these are is journaled before the handler runs, since the next
// owner of the partition may find more of them, or not all of them yet, and what
// the leader's steps have asked is for these. A task that finds itself alone
// costs nothing of that.

// group holds what the turn of an item, its leader, answers as well. Members are
// in no lane.
type group struct {
	members []*item
	// bound says that the journal holds the group, so that it stays as it is until
	// the leader is done.
	bound bool
	// awaitedSince is since when members that the journal names are missing.
	awaitedSince time.Time
}

const (
	// maxGroup bounds the tasks of a turn, maxGroupBytes their records.
	maxGroup      = 100
	maxGroupBytes = 1 << 20
	// regroupPatience is how long members are waited for that are named by the
	// journal and neither complete nor in the lane: they are yet to be read.
	regroupPatience = 10 * time.Second
	regroupTick     = 200 * time.Millisecond
)

// fresh reports whether no turn of an item has begun, as far as is known here.
func (it *item) fresh() bool {
	return it.attempts == 0 && it.deaths == "" && !it.journaled && !it.recall && it.final == nil && it.givenUp == nil
}

// gather takes those items out of the lane that wait right behind it and may be
// answered along with it. The engine's mutex is held.
func (it *item) gather(l *lane) {
	if it.task.Conversation == "" || !it.fresh() || it.group != nil && it.group.bound {
		return
	}
	queue := &l.waiting[it.priority]
	for m := queue.first; m != nil; m = queue.first {
		if it.answers(m.task.Key()) {
			m.lookUp = true // a sender's repeat, which is done by then
			return
		}
		if !it.joins(m) {
			return
		}
		queue.popFirst()
		it.add(m)
	}
}

// joins reports whether the turn of an item may answer m as well. What bounds and
// ends the turn is the leader's, so the others must have the same.
func (it *item) joins(m *item) bool {
	a, b := &it.task, &m.task
	return b.OnBusy == millrace.BusyCoalesce && m.fresh() && m.outages == 0 && !m.recorded &&
		a.Type == b.Type && a.Tenant == b.Tenant && a.MaxAttempts == b.MaxAttempts && a.Deadline.Equal(b.Deadline) &&
		(it.group == nil || len(it.group.members) < maxGroup-1) && it.size+m.size <= maxGroupBytes
}

func (it *item) add(m *item) {
	if it.group == nil {
		it.group = &group{}
	}
	it.group.members = append(it.group.members, m)
	it.size += m.size
}

// release puts items that were taken out of the lane back to its front. They may
// be complete. Those of a partition that was taken away meanwhile go with it.
func (it *item) release(l *lane, members []*item) {
	if it.part.revoked {
		return
	}
	for _, m := range slices.Backward(members) {
		it.size -= m.size
		m.lookUp = true
		l.waiting[it.priority].pushFirst(m)
	}
}

// answers reports whether a run of a task is that of the item, or of one that is
// answered along with it.
func (it *item) answers(key millrace.Key) bool {
	return it.task.Key() == key || it.group != nil && slices.ContainsFunc(it.group.members, func(m *item) bool { return m.task.Key() == key })
}

// coalesce makes sure that the journal holds what the turn of an item is to
// answer along with it. It reports whether the turn is put off.
func (e *Engine) coalesce(ctx context.Context, l *lane, it *item, now time.Time) (v verdict, done bool) {
	if it.group == nil && !it.inherited || it.group != nil && it.group.bound {
		return verdict{}, false
	}
	named, err := e.cfg.Store.Coalesce(ctx, it.task.Key(), it.members(), false)
	if err != nil {
		return e.outage(ctx, it, err), true
	}
	missing := e.regroup(l, it, named)
	if len(missing) > 0 {
		found, err := e.cfg.Store.Completed(ctx, missing)
		if err != nil {
			return e.outage(ctx, it, err), true
		}
		if len(found) < len(missing) && e.awaits(it, now) {
			return verdict{kind: retry, delay: regroupTick}, true
		}
		// What the leader's steps have asked was for all of them.
		if named, err = e.cfg.Store.Coalesce(ctx, it.task.Key(), it.members(), true); err != nil {
			return e.outage(ctx, it, err), true
		}
		e.regroup(l, it, named)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	it.inherited, it.asked = false, true
	if it.group != nil && len(it.group.members) == 0 {
		it.group = nil
	}
	if it.group != nil {
		it.group.bound = true
	}
	return verdict{}, false
}

// awaits reports whether members that are missing are still waited for.
func (e *Engine) awaits(it *item, now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if it.group == nil {
		it.group = &group{}
	}
	if it.group.awaitedSince.IsZero() {
		it.group.awaitedSince = now
	}
	return now.Sub(it.group.awaitedSince) < regroupPatience
}

// regroup makes the group of an item that of the named tasks, as far as they are
// in the lane, and returns those that are not.
func (e *Engine) regroup(l *lane, it *item, named []millrace.Key) (missing []millrace.Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := make(map[millrace.Key]*item)
	if it.group != nil {
		for _, m := range it.group.members {
			before[m.task.Key()] = m
		}
	}
	var members []*item
	for _, key := range named {
		m := before[key]
		if m != nil {
			delete(before, key)
		} else if m = l.take(it.priority, key); m != nil {
			it.size += m.size
		}
		if m == nil {
			missing = append(missing, key)
			continue
		}
		members = append(members, m)
	}
	if it.group == nil {
		if len(members) > 0 {
			it.group = &group{members: members}
		}
		return missing
	}
	it.release(l, slices.DeleteFunc(it.group.members, func(m *item) bool { return before[m.task.Key()] == nil }))
	it.group.members = members
	return missing
}

// take removes the first run of a task that waits in a priority of the lane, and
// returns it.
func (l *lane) take(priority int, key millrace.Key) (taken *item) {
	var kept itemQueue
	for it := range l.waiting[priority].all() {
		it.next = nil
		if taken == nil && it.task.Key() == key {
			taken = it
		} else {
			kept.push(it)
		}
	}
	l.waiting[priority] = kept
	return taken
}

// endGroup books the end of an item with a group. Its caller holds the mutex.
func (e *Engine) endGroup(l *lane, it *item, committed bool) {
	g := it.group
	it.group = nil
	if !committed || !g.bound {
		// The leader has ended without them: by a cancel, or before its turn.
		it.release(l, g.members)
		return
	}
	for _, m := range g.members {
		it.part.tracker.done(m.offset)
		if m.recorded {
			e.noteForget(m)
		}
	}
	e.metrics.busy.WithLabelValues("coalesced").Add(float64(len(g.members)))
}

// members returns the keys of what the turn of an item answers along with it.
func (it *item) members() []millrace.Key {
	if it.group == nil {
		return nil
	}
	keys := make([]millrace.Key, len(it.group.members))
	for i, m := range it.group.members {
		keys[i] = m.task.Key()
	}
	return keys
}

// coalesced returns the tasks that the turn of an item answers along with its own.
func (it *item) coalesced() []*millrace.Task {
	if it.group == nil {
		return nil
	}
	tasks := make([]*millrace.Task, len(it.group.members))
	for i, m := range it.group.members {
		tasks[i] = &m.task
	}
	return tasks
}

// also returns what ends along with an item, as dead letters if it ends as d.
func (it *item) also(d *millrace.DeadLetter) []millrace.Also {
	if it.group == nil || !it.group.bound {
		return nil
	}
	also := make([]millrace.Also, len(it.group.members))
	for i, m := range it.group.members {
		also[i].Task = m.task
		if d != nil {
			also[i].DeadLetter = &millrace.DeadLetter{Reason: d.Reason, Detail: d.Detail, Stack: d.Stack, Record: m.record()}
		}
	}
	return also
}

// strayed reports whether a turn has met steps of a group that it did not know
// of: those of a worker that has lost the partition and not noticed yet. It then
// runs anew, with that group.
func (it *item) strayed(err error) bool {
	var mismatch *millrace.StepMismatchError
	if it.task.OnBusy != millrace.BusyCoalesce || it.asked || !errors.As(err, &mismatch) {
		return false
	}
	it.inherited = true
	return true
}

// named returns the item, or what is answered along with it, that is of a task.
func (it *item) named(id string) *item {
	if it.task.ID == id {
		return it
	}
	if it.group != nil {
		for _, m := range it.group.members {
			if m.task.ID == id {
				return m
			}
		}
	}
	return nil
}

// explainAnswered says how a task stands that the turn of leader answers. Its
// caller holds the mutex.
func (e *Engine) explainAnswered(l *lane, leader, it *item, now time.Time) Explanation {
	x := e.explain(l, leader, now)
	x.TaskID, x.Redrive, x.Offset = it.task.ID, it.task.Redrive, it.offset
	return x
}
