package consumer

import "time"

// agingEvery is how often a free slot goes to the conversation that has waited
// too long rather than to the highest priority.
const agingEvery = 16

// schedule decides which lane gets the next free slot. Slots are work-conserving
// but for those reserved for a priority. Its caller serialises access.
type schedule struct {
	queues   []laneQueue // by priority, highest first
	reserved []int
	running  []int
	free     int
	picks    uint64 // slots handed out
	aging    time.Duration
}

// laneQueue holds lanes in order, linked through them.
type laneQueue struct{ first, last *lane }

func (q *laneQueue) push(l *lane) {
	l.ready.queue, l.ready.before = q, q.last
	if q.last == nil {
		q.first = l
	} else {
		q.last.ready.after = l
	}
	q.last = l
}

func (q *laneQueue) pushFirst(l *lane) {
	l.ready.queue, l.ready.after = q, q.first
	if q.first == nil {
		q.last = l
	} else {
		q.first.ready.before = l
	}
	q.first = l
}

// remove takes a lane out, from wherever it is.
func (q *laneQueue) remove(l *lane) {
	before, after := l.ready.before, l.ready.after
	if before == nil {
		q.first = after
	} else {
		before.ready.after = after
	}
	if after == nil {
		q.last = before
	} else {
		after.ready.before = before
	}
	l.ready = queuedLane{}
}

func newSchedule(slots int, reserved []int, aging time.Duration) *schedule {
	return &schedule{
		queues:   make([]laneQueue, len(reserved)),
		reserved: reserved,
		running:  make([]int, len(reserved)),
		free:     slots,
		aging:    aging,
	}
}

// enqueue puts a lane where its next item belongs. A lane that already waits for
// a slot at this or a higher priority keeps its place.
func (s *schedule) enqueue(l *lane, priority int, now time.Time) {
	if l.ready.queue != nil && l.ready.priority <= priority {
		return
	}
	s.remove(l)
	l.ready.priority, l.ready.since = priority, now
	s.queues[priority].push(l)
}

// first puts a lane that waits for a slot before the others of its priority.
func (s *schedule) first(l *lane) {
	if q := l.ready.queue; q != nil {
		priority, since := l.ready.priority, l.ready.since
		q.remove(l)
		l.ready.priority, l.ready.since = priority, since
		q.pushFirst(l)
	}
}

// remove takes a lane out of whatever queue it waits in.
func (s *schedule) remove(l *lane) {
	if l.ready.queue != nil {
		l.ready.queue.remove(l)
	}
}

// any reports whether some lane may have a slot.
func (s *schedule) any() bool {
	if s.free == 0 {
		return false
	}
	for p := range s.queues {
		if s.queues[p].first != nil && s.allowed(p) {
			return true
		}
	}
	return false
}

// pick takes the lane that gets a free slot, or nil when none may have one.
func (s *schedule) pick(now time.Time) *lane {
	if s.free == 0 {
		return nil
	}
	if (s.picks+1)%agingEvery == 0 {
		if p := s.oldest(now); p > 0 {
			return s.take(p)
		}
	}
	for p := range s.queues {
		if s.queues[p].first != nil && s.allowed(p) {
			return s.take(p)
		}
	}
	return nil
}

// oldest returns the lower priority whose first lane has waited longest, and
// longer than the aging time; 0 when there is none.
func (s *schedule) oldest(now time.Time) int {
	found, since := 0, now.Add(-s.aging)
	for p := 1; p < len(s.queues); p++ {
		if l := s.queues[p].first; l != nil && l.ready.since.Before(since) && s.allowed(p) {
			found, since = p, l.ready.since
		}
	}
	return found
}

// allowed reports whether priority p may take a slot without eating into what
// is reserved for the others.
func (s *schedule) allowed(p int) bool {
	if s.running[p] < s.reserved[p] {
		return true
	}
	kept := 0
	for q := range s.queues {
		if q != p {
			kept += max(0, s.reserved[q]-s.running[q])
		}
	}
	return s.free > kept
}

func (s *schedule) take(p int) *lane {
	l := s.queues[p].first
	s.queues[p].remove(l)
	s.picks++
	s.free--
	s.running[p]++
	return l
}

// takeFor takes a free slot for an item of priority p that waits in no queue.
func (s *schedule) takeFor(p int) {
	s.picks++
	s.free--
	s.running[p]++
}

// release gives a slot back that ran an item of priority p.
func (s *schedule) release(p int) {
	s.free++
	s.running[p]--
}
