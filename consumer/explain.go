package consumer

import (
	"time"

	"millrace"
)

// TaskState says where in a worker a task is.
type TaskState string

// The states. A task that a worker does not know in memory is Absent; with its
// place in the log, the worker can say more.
const (
	// Running: a turn of it runs, or its commit.
	Running TaskState = "running"
	// WaitingForSlot: it is the next of its conversation, and no slot is free for it.
	WaitingForSlot TaskState = "waiting_for_slot"
	// WaitingForConversation: other tasks of its conversation come before it.
	WaitingForConversation TaskState = "waiting_for_conversation"
	// WaitingForRetry: a try has failed, and the next one has its time.
	WaitingForRetry TaskState = "waiting_for_retry"
	// WaitingForOwner: an earlier owner of its partition still runs a turn of its
	// conversation.
	WaitingForOwner TaskState = "waiting_for_owner"
	// WaitingForPool: another pool runs a turn of its conversation, or is next.
	WaitingForPool TaskState = "waiting_for_pool"
	// WaitingToRunAlone: workers have died while it ran, so it runs when nothing else
	// does.
	WaitingToRunAlone TaskState = "waiting_to_run_alone"
	// LookingUp: it has been read, and whether it is complete is being looked up.
	LookingUp TaskState = "looking_up"
	// Unread: its record has not been read yet.
	Unread TaskState = "unread"
	// Done: this worker is done with its record.
	Done TaskState = "done"
	// Absent: this worker does not know it.
	Absent TaskState = "absent"
)

// Explanation says where a task is in a worker, and what it waits for. What does
// not concern its state is zero.
type Explanation struct {
	TaskID string    `json:"task_id"`
	State  TaskState `json:"state"`
	// Incarnation is that of the worker that answers.
	Incarnation string `json:"incarnation,omitempty"`
	// Draining: the worker has been told to stop, and starts no turns.
	Draining bool `json:"draining,omitempty"`

	ConversationID string            `json:"conversation_id,omitempty"`
	Priority       millrace.Priority `json:"priority,omitempty"`
	Redrive        int               `json:"redrive,omitempty"`
	Topic          string            `json:"topic,omitempty"`
	Partition      int32             `json:"partition"`
	Offset         int64             `json:"offset"`

	// Attempt is the one that runs, or the last that failed; 0 before the first.
	Attempt     int `json:"attempt,omitempty"`
	MaxAttempts int `json:"max_attempts,omitempty"`
	// Outages are the tries in a row that the outage of a dependency has ended. They
	// are no attempts.
	Outages   int    `json:"outages,omitempty"`
	LastError string `json:"last_error,omitempty"`
	// StartedAt and TimesOutAt are of the turn that runs. Zero StartedAt: its handler
	// does not run, but what comes before or after it.
	StartedAt  time.Time `json:"started_at,omitzero"`
	TimesOutAt time.Time `json:"times_out_at,omitzero"`
	// RetryAt is when it is tried again.
	RetryAt time.Time `json:"retry_at,omitzero"`

	// TasksBefore are the tasks of its conversation here that come first, one that
	// runs included, which RunningTask names.
	TasksBefore int    `json:"tasks_before,omitempty"`
	RunningTask string `json:"running_task,omitempty"`
	// ConversationsBefore wait for a slot before its own, at its priority.
	ConversationsBefore int `json:"conversations_before,omitempty"`
	Slots               int `json:"slots,omitempty"`
	BusySlots           int `json:"busy_slots,omitempty"`
	// ReservedSlots are free, and kept for other priorities.
	ReservedSlots int `json:"reserved_slots,omitempty"`

	// Deaths are the workers that have died while it ran.
	Deaths int `json:"deaths,omitempty"`
	// RunsAlone is a task that may have killed workers and keeps all others from
	// starting while it runs.
	RunsAlone string `json:"runs_alone,omitempty"`

	// WaitsFor names who is waited for: the incarnation of an earlier owner, or
	// pool/incarnation/turn of another pool.
	WaitsFor string `json:"waits_for,omitempty"`
	// WaitsSince is since when an earlier owner is waited for.
	WaitsSince time.Time `json:"waits_since,omitzero"`

	// ReadTo is the offset that the partition has been read up to, and CommittedTo
	// the lowest that is not done. -1: not known.
	ReadTo      int64 `json:"read_to,omitempty"`
	CommittedTo int64 `json:"committed_to,omitempty"`
	// PausedBy says which bound of the intake keeps the partition from being read.
	PausedBy string `json:"paused_by,omitempty"`
}

// Place is where a record lies.
type Place struct {
	Topic     string
	Partition int32
	Offset    int64
}

// lanesAtALook bounds how many lanes are looked at before the mutex is given back.
const lanesAtALook = 1000

// Explain says where a task is. It looks at everything that waits, with the
// mutex given back now and then, so that turns go on. At says where its record
// lies, if that is known: a task that is not in memory can then be told from one
// that is done.
func (e *Engine) Explain(id string, at *Place) Explanation {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, l := range e.running {
		if it := l.current.named(id); it != nil {
			return e.explainAnswered(l, l.current, it, now)
		}
	}
	for p := range e.toLookUp {
		for _, f := range e.toLookUp[p] {
			for _, it := range f.items {
				if it.task.ID == id && !f.part.revoked {
					x := e.explanation(it)
					x.State = LookingUp
					return x
				}
			}
		}
	}
	// A lane that the task waits in all the while is seen: a range over a map may
	// miss what comes meanwhile, not what stays.
	n := 0
	for _, l := range e.lanes {
		if n++; n%lanesAtALook == 0 {
			e.mu.Unlock()
			e.mu.Lock()
		}
		for _, it := range []*item{l.pinned, l.current} {
			if it == nil {
				continue
			}
			if m := it.named(id); m != nil {
				return e.explainAnswered(l, it, m, now)
			}
		}
		for i := range l.waiting {
			for it := range l.waiting[i].all() {
				if m := it.named(id); m != nil {
					return e.explainAnswered(l, it, m, now)
				}
			}
		}
	}
	x := Explanation{TaskID: id, State: Absent, Draining: e.draining, Incarnation: e.Incarnation()}
	if at != nil {
		e.explainPlace(&x, at)
	}
	return x
}

// explanation is what is known of an item wherever it is. Its caller holds the
// mutex.
func (e *Engine) explanation(it *item) Explanation {
	return Explanation{
		TaskID: it.task.ID, ConversationID: it.task.Conversation, Priority: it.task.Priority, Redrive: it.task.Redrive,
		Topic: it.part.tp.topic, Partition: it.part.tp.partition, Offset: it.offset,
		MaxAttempts: e.maxAttempts(it), Draining: e.draining, Incarnation: e.Incarnation(),
	}
}

// explain says how a task in a lane stands. Its caller holds the mutex.
func (e *Engine) explain(l *lane, it *item, now time.Time) Explanation {
	x := e.explanation(it)
	if it == l.current {
		// The item belongs to its slot now: only what does not change is read.
		x.State = Running
		if turn := l.turn.Load(); turn != nil {
			x.StartedAt, x.TimesOutAt, x.Attempt = turn.started, turn.deadline, turn.attempt
		}
		return x
	}
	x.Attempt, x.Outages, x.Deaths = it.attempts, it.outages, it.deaths.count()
	if it.lastError != nil {
		x.LastError = it.lastError.Error()
	}
	if before := l.before(it); before > 0 {
		x.State, x.TasksBefore = WaitingForConversation, before
		if l.current != nil {
			x.RunningTask = l.current.task.ID
			return x
		}
		// What keeps the first one keeps them all.
		first := e.explain(l, l.head(), now)
		x.RetryAt, x.WaitsFor, x.WaitsSince = first.RetryAt, first.WaitsFor, first.WaitsSince
		e.explainSlots(&x, l)
		return x
	}
	if h := e.holds[holdKey{l.key.partition, l.name(it)}]; h != nil {
		x.State, x.WaitsFor, x.WaitsSince = WaitingForOwner, h.by, h.since
		return x
	}
	if e.awaitsLease(l) {
		x.State, x.WaitsFor = WaitingForPool, l.blockedBy
		return x
	}
	if it.notBefore.After(now) {
		x.State, x.RetryAt = WaitingForRetry, it.notBefore
		return x
	}
	x.State = WaitingForSlot
	if l.suspected {
		x.State = WaitingToRunAlone
	}
	e.explainSlots(&x, l)
	return x
}

// before counts the tasks of the lane that come before one that waits.
func (l *lane) before(it *item) int {
	n := 0
	if l.current != nil {
		n++
	}
	if l.pinned == it {
		return n
	}
	if l.pinned != nil {
		n++
	}
	for p := range it.priority {
		for range l.waiting[p].all() {
			n++
		}
	}
	for other := range l.waiting[it.priority].all() {
		if other == it {
			break
		}
		n++
	}
	return n
}

// explainSlots says how the slots are taken. Its caller holds the mutex.
func (e *Engine) explainSlots(x *Explanation, l *lane) {
	x.Slots, x.BusySlots = e.cfg.Slots, e.cfg.Slots-e.schedule.free
	if alone := e.suspects.alone; alone != nil && alone.current != nil {
		x.RunsAlone = alone.current.task.ID
	}
	if l.ready.queue == nil {
		return
	}
	for before := l.ready.before; before != nil; before = before.ready.before {
		x.ConversationsBefore++
	}
	for p, reserved := range e.schedule.reserved {
		if p != l.ready.priority {
			x.ReservedSlots += max(0, reserved-e.schedule.running[p])
		}
	}
	x.ReservedSlots = min(x.ReservedSlots, e.schedule.free)
}

// explainPlace says how the record at a place stands that is in no lane. Its
// caller holds the mutex.
func (e *Engine) explainPlace(x *Explanation, at *Place) {
	p := e.parts[topicPartition{at.Topic, at.Partition}]
	if p == nil || p.revoked {
		return
	}
	x.Topic, x.Partition, x.Offset = at.Topic, at.Partition, at.Offset
	x.Priority = e.cfg.Priorities[p.priority]
	x.ReadTo, x.CommittedTo = -1, -1
	if p.tracker.known {
		x.ReadTo, x.CommittedTo = p.tracker.last, p.tracker.next
	}
	switch {
	case !p.tracker.known || at.Offset > p.tracker.last:
		x.State = Unread
		if p.paused {
			x.PausedBy = e.pausedBy(p)
		}
	case p.tracker.isPending(at.Offset):
		x.State = LookingUp
	default:
		x.State = Done
	}
}

// pausedBy names the bound that keeps a partition from being read.
func (e *Engine) pausedBy(p *partition) string {
	if e.full[p.priority] {
		return "bytes"
	}
	return "offsets"
}
