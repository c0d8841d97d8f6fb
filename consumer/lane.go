package consumer

import (
	"iter"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// item is a record on its way through the engine. There are hundreds of
// thousands of them: what is small stands together at the end.
type item struct {
	task millrace.Task
	// offset, timestamp, in milliseconds, and headers are the record's; the task has
	// the rest of it.
	offset    int64
	timestamp int64
	headers   []millrace.Header
	// invalid says why the record cannot be a task. Such an item becomes a dead
	// letter without a turn.
	invalid *invalidRecord
	part    *partition
	size    int64
	// next is the item behind it in its lane.
	next *item
	// lastError is what the last try that failed failed with.
	lastError error
	// notBefore delays the next try.
	notBefore time.Time
	// exitStack is set when the handler has ended the slot's goroutine instead of
	// returning: the goroutine's stack then.
	exitStack string
	// endedBy is why its turn is to end, if it is. It is set once.
	endedBy atomic.Pointer[error]
	// failedUnder is the breaker that counted its last failure.
	failedUnder *breaker
	// final is set once the task is to end without a turn, or is interrupted: what is
	// committed of it.
	final *millrace.Completion
	// givenUp is set once the task is to become a dead letter.
	givenUp *millrace.DeadLetter
	// deaths are those of workers that ran it.
	deaths deaths
	// group holds the further items that its turn answers, if there are any. Their
	// sizes are part of its own.
	group *group
	// attempts counts the handler runs that failed, outages the tries in a row that
	// a dependency's outage ended.
	attempts, outages int

	priority int
	// control says that it is the end of a transaction, which holds no task.
	control bool
	// emptyKey says that the record's key is empty, and not null.
	emptyKey bool
	// lookUp asks for a look whether the task is complete already, before it runs.
	lookUp bool
	// journaled says that a turn of this task has begun a step: no other task of
	// the conversation overtakes it any more.
	journaled bool
	// rumoured says that the task is said to be cancelled while it runs.
	rumoured bool
	// probing says that a breaker has let it through to see whether its dependency
	// answers.
	probing bool
	// recorded says that Redis may hold a past of the task, recall that it is to be
	// asked before the next turn.
	recorded, recall bool
	// inherited says that an earlier run may have journaled items that its turn is to
	// answer, asked that the journal has been asked for them.
	inherited, asked bool
}

// itemQueue holds items in order, linked through them.
type itemQueue struct{ first, last *item }

func (q *itemQueue) push(it *item) {
	if q.first == nil {
		q.first = it
	} else {
		q.last.next = it
	}
	q.last = it
}

func (q *itemQueue) pushFirst(it *item) {
	if q.first == nil {
		q.last = it
	}
	it.next, q.first = q.first, it
}

func (q *itemQueue) popFirst() {
	it := q.first
	q.first, it.next = it.next, nil
	if q.first == nil {
		q.last = nil
	}
}

// all returns the items in order. The one that was yielded may be pushed
// elsewhere.
func (q *itemQueue) all() iter.Seq[*item] {
	return func(yield func(*item) bool) {
		for it := q.first; it != nil; {
			next := it.next
			if !yield(it) {
				return
			}
			it = next
		}
	}
}

type laneKey struct {
	partition    int32
	conversation string
	// unkeyed tells the lanes of tasks without a conversation apart. 0 for others.
	unkeyed uint64
}

// lane is the queue of one conversation. Fields are guarded by the engine's
// mutex, but for conv, which belongs to the slot that runs the lane.
type lane struct {
	key laneKey
	// waiting holds the items by priority, in the order of the log.
	waiting []itemQueue
	// pinned is an item that may not be overtaken.
	pinned  *item
	running bool
	// current is the item that runs, slot its place among the running lanes.
	current *item
	slot    int
	// turn is the context of the handler that runs, if one does.
	turn atomic.Pointer[turnContext]
	// conv is the conversation as this lane's last turn left it.
	conv *millrace.Conversation
	// lease names the turn that the lane has its lease for, "" when it has none.
	lease string
	// blockedBy is who was seen last to have the lease that the lane waits for.
	blockedBy string

	ready  queuedLane
	cached cachedLane
	timer  *time.Timer
	run    laneRun
	// suspected says that the lane waits to run alone.
	suspected bool
	// parked is the breaker that the lane waits for.
	parked *breaker
}

// queuedLane says where a lane waits for a slot: between which others of a
// queue of the schedule. queue is nil when it waits nowhere.
type queuedLane struct {
	queue         *laneQueue
	before, after *lane
	priority      int
	since         time.Time
}

func newLane(key laneKey, priorities int) *lane {
	return &lane{key: key, waiting: make([]itemQueue, priorities)}
}

func (l *lane) push(it *item) { l.waiting[it.priority].push(it) }

// head returns the item that is next, without removing it: the pinned one, or
// the first of the highest priority.
func (l *lane) head() *item {
	if l.pinned != nil {
		return l.pinned
	}
	for i := range l.waiting {
		if it := l.waiting[i].first; it != nil {
			return it
		}
	}
	return nil
}

func (l *lane) pop(it *item) {
	if l.pinned == it {
		l.pinned = nil
		return
	}
	l.waiting[it.priority].popFirst()
}

// putBack returns an item that was popped to where it came from.
func (l *lane) putBack(it *item) {
	if it.journaled {
		l.pinned = it
		return
	}
	l.waiting[it.priority].pushFirst(it)
}

// dropPartition removes the waiting items of a partition that was taken away.
func (l *lane) dropPartition(p *partition) (dropped []*item) {
	if l.pinned != nil && l.pinned.part == p {
		dropped = append(dropped, l.pinned)
		l.pinned = nil
	}
	for i := range l.waiting {
		var kept itemQueue
		for it := range l.waiting[i].all() {
			it.next = nil
			if it.part == p {
				dropped = append(dropped, it)
			} else {
				kept.push(it)
			}
		}
		l.waiting[i] = kept
	}
	return dropped
}

// recordOverhead is what an item costs beside the bytes of its record.
const recordOverhead = 600

// invalidRecord is a record that cannot be a task.
type invalidRecord struct {
	*millrace.RecordError
	record millrace.Record
}

// newItem decodes a record. It copies all bytes out of the fetch, which one
// waiting record would otherwise keep in memory whole.
func newItem(r *kgo.Record, topicID [16]byte) *item {
	it := &item{offset: r.Offset, timestamp: r.Timestamp.UnixMilli()}
	record := cloneRecord(r, topicID)
	var err error
	it.task, err = millrace.TaskFromRecord(record)
	if invalid, ok := err.(*millrace.RecordError); ok { //nolint:errorlint // documented to be this type, unwrapped
		it.invalid = &invalidRecord{invalid, record}
		it.task.Conversation = ""
	}
	it.headers, it.emptyKey = record.Headers, record.Key != nil && len(record.Key) == 0
	it.size = int64(len(r.Key)+len(r.Value)) + recordOverhead
	for _, h := range r.Headers {
		it.size += int64(len(h.Key) + len(h.Value))
	}
	return it
}

// record returns the record as it was read.
func (it *item) record() millrace.Record {
	if it.invalid != nil {
		return it.invalid.record
	}
	r := millrace.Record{
		Topic: it.part.tp.topic, TopicID: it.part.topicID, Partition: it.part.tp.partition, Offset: it.offset,
		Timestamp: time.UnixMilli(it.timestamp), Value: it.task.Payload, Headers: it.headers,
	}
	if it.task.Conversation != "" || it.emptyKey {
		r.Key = []byte(it.task.Conversation)
	}
	return r
}

func cloneRecord(r *kgo.Record, topicID [16]byte) millrace.Record {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Value)
	}
	buf := make([]byte, 0, n)
	clone := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		from := len(buf)
		buf = append(buf, b...)
		return buf[from:len(buf):len(buf)]
	}
	out := millrace.Record{
		Topic: r.Topic, TopicID: topicID, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp,
		Key: clone(r.Key), Value: clone(r.Value),
	}
	if len(r.Headers) > 0 {
		out.Headers = make([]millrace.Header, len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = millrace.Header{Key: h.Key, Value: clone(h.Value)}
		}
	}
	return out
}
