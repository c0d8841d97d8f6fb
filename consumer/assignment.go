package consumer

import (
	"context"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

type topicPartition struct {
	topic     string
	partition int32
}

// partition is one assignment of a partition: when it leaves and comes back it
// is another one, so that nothing old can be taken for new.
type partition struct {
	tp       topicPartition
	priority int
	tracker  tracker
	// committed is the offset that was committed last, -1 before the first commit.
	committed int64
	// metadata is that of the last commit.
	metadata string
	// finished are the offsets that the previous owner's last commit says are done.
	finished []offsetRange
	// lookUpBelow is the end of the log when reading began, or the fence that was
	// found if that is lower; -1 before that.
	lookUpBelow int64
	// fence is where the partition's fence has been raised to, or noFence; topicID is
	// known from the first record on.
	fence   int64
	topicID [16]byte
	// unlooked counts the fetches of it that wait to be looked up.
	unlooked int
	// withPast says that Redis holds pasts of tasks of its number.
	withPast bool
	// markEarly is how many more turns are marked before they start.
	markEarly int
	running   int
	revoked   bool
	paused    bool
	// idle is set when the partition is taken away while turns run, and closed when
	// none does any more. It does not change after that.
	idle chan struct{}
	// handedOver says that whoever owns the partition next knows of the turns that
	// run: they go on and commit.
	handedOver bool
	// ctx ends when the partition's turns must stop.
	ctx    context.Context //nolint:containedctx // the lifetime of an assignment, which no call spans
	cancel context.CancelFunc
}

// newPartition begins an assignment. The client's context ends with the client;
// turns end with their partition.
func newPartition(ctx context.Context, tp topicPartition, priority int) *partition {
	p := &partition{tp: tp, priority: priority, committed: -1, lookUpBelow: -1, fence: noFence}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return p
}

func (e *Engine) onAssigned(ctx context.Context, cl *kgo.Client, assigned map[string][]int32) {
	// The client assigns a partition that is held already when its topic was
	// deleted and made anew: the old one's tasks are gone from Kafka, and its
	// offsets mean nothing in the new one.
	if replaced := e.takeAway(assigned); len(replaced) > 0 {
		for _, p := range replaced {
			p.cancel()
		}
		e.commitMu.lock()
		e.forget(cl, replaced)
		e.commitMu.unlock()
		e.log.Warn().Int("replaced", len(replaced)).Msg("partitions assigned anew while they were held: their topic was recreated")
	}
	numbers := partitionNumbers(assigned)
	withPast := e.holdAnnounced(ctx, numbers)
	orphaned := e.ownAnew(ctx, numbers)
	e.round.settle(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.joined.Store(true)
	n := 0
	for topic, partitions := range assigned {
		for _, number := range partitions {
			p := newPartition(ctx, topicPartition{topic, number}, e.topics[topic])
			p.withPast = withPast[number]
			if orphaned[number] {
				p.markEarly = 2 * e.cfg.Slots // the dead one ran no more than its slots at once
			}
			e.parts[p.tp] = p
			n++
		}
	}
	e.metrics.partitions.Set(float64(len(e.parts)))
	if n > 0 {
		e.metrics.rebalances.Inc()
		e.log.Info().Int("gained", n).Int("partitions", len(e.parts)).Msg("partitions assigned")
	}
}

func partitionNumbers(of map[string][]int32) []int32 {
	seen := make(map[int32]bool)
	for _, numbers := range of {
		for _, n := range numbers {
			seen[n] = true
		}
	}
	return slices.Collect(maps.Keys(seen))
}

// onOffsetsFetched takes what the previous owners' last commits say of offsets
// above the committed ones. Reading begins after it returns.
func (e *Engine) onOffsetsFetched(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	take := func(topic string, partition int32, offset int64, metadata *string) {
		p := e.parts[topicPartition{topic, partition}]
		if p == nil || metadata == nil || offset < 0 {
			return
		}
		finished, err := decodeMetadata(offset, *metadata)
		if err != nil {
			// Somebody else's commit, by a tool perhaps: its offset counts, its words do
			// not concern us.
			e.log.Info().Err(err).Str("topic", topic).Int32("partition", partition).Msg("committed by another kind of client")
			return
		}
		p.finished = finished
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			take(t.Topic, p.Partition, p.Offset, p.Metadata)
		}
	}
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				take(t.Topic, p.Partition, p.Offset, p.Metadata)
			}
		}
	}
	return nil
}

// onRevoked gives partitions up. Running turns are announced to the next owner,
// which waits for them, and go on. If they cannot be, they get RevokeGrace to
// commit, then their context ends. The offsets of what is done are committed
// before the next owner is told to begin; after that no offset of these
// partitions is ever committed here.
func (e *Engine) onRevoked(ctx context.Context, cl *kgo.Client, revoked map[string][]int32) {
	parts := e.takeAway(revoked)
	if len(parts) == 0 {
		return
	}
	if !e.announceRunning(ctx, parts) {
		e.awaitOrCancel(parts)
	}
	e.disown(ctx, partitionNumbers(revoked))
	e.commitMu.lock()
	defer e.commitMu.unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := e.commitParts(ctx, cl, parts); err != nil {
		e.log.Warn().Err(err).Msg("cannot commit offsets of revoked partitions; their next owner will look completions up")
	}
	e.forget(cl, parts)
	e.log.Info().Int("revoked", len(parts)).Msg("partitions revoked")
}

// awaitOrCancel gives running turns RevokeGrace to finish, and ends those that do
// not: nobody must run beside them.
func (e *Engine) awaitOrCancel(parts []*partition) {
	limit := time.NewTimer(e.cfg.RevokeGrace)
	defer limit.Stop()
	if waitIdle(parts, limit.C) {
		return
	}
	for _, p := range parts {
		p.cancel()
	}
	limit.Reset(200 * time.Millisecond)
	waitIdle(parts, limit.C)
}

// onLost gives partitions up that already belong to others.
func (e *Engine) onLost(_ context.Context, cl *kgo.Client, lost map[string][]int32) {
	e.joined.Store(false)
	parts := e.takeAway(lost)
	for _, p := range parts {
		p.cancel()
	}
	// A commit under way must not outlive this callback; the lock waits for it.
	e.commitMu.lock()
	defer e.commitMu.unlock()
	e.forget(cl, parts)
	if len(parts) > 0 {
		e.metrics.lost.Add(float64(len(parts)))
		e.log.Warn().Int("lost", len(parts)).Msg("partitions lost: the group gave up on this worker; their turns run elsewhere")
	}
}

// takeAway marks partitions as revoked and drops what waits of them. Running
// turns go on.
func (e *Engine) takeAway(revoked map[string][]int32) []*partition {
	e.mu.Lock()
	defer e.mu.Unlock()
	var parts []*partition
	for topic, numbers := range revoked {
		for _, number := range numbers {
			p := e.parts[topicPartition{topic, number}]
			if p == nil {
				continue
			}
			p.revoked = true
			if p.running > 0 {
				p.idle = make(chan struct{})
				e.outliving += p.running
			}
			parts = append(parts, p)
		}
	}
	if len(parts) == 0 {
		return nil
	}
	numbers := make(map[int32][]*partition)
	for _, p := range parts {
		numbers[p.tp.partition] = append(numbers[p.tp.partition], p)
	}
	e.dropHolds(numbers)
	e.repeats.forget()
	now := time.Now()
	for _, l := range e.lanes {
		dropped := 0
		for _, p := range numbers[l.key.partition] {
			for _, it := range l.dropPartition(p) {
				e.waiting[it.priority] -= it.size
				if it.probing {
					e.breakers.undecided(it)
				}
				dropped++
			}
		}
		if dropped > 0 && l.lease != "" && !l.running {
			e.endLease(l) // kept for the retry of a task that others run now
		}
		if dropped > 0 {
			e.schedule.remove(l)
			e.makeReady(l, now)
		}
		if _, gone := numbers[l.key.partition]; gone && !l.running {
			e.cache.take(l)
			l.conv = nil // its next turn here, if ever, comes after somebody else's
			e.dropEmpty(l)
		}
	}
	for _, p := range parts {
		e.adjustIntake(p)
	}
	e.dispatch()
	return parts
}

// stillRuns returns the lane in which an unkeyed task runs whose partition has left
// and come back meanwhile, or nil: it must not run beside itself. Its caller holds
// the mutex.
func (e *Engine) stillRuns(it *item) *lane {
	if e.outliving == 0 {
		return nil
	}
	for _, l := range e.running {
		if l.key.unkeyed != 0 && l.current.part.revoked && l.current.part.tp == it.part.tp && l.current.task.Key() == it.task.Key() {
			return l
		}
	}
	return nil
}

// outlived books the end of a turn whose partition was taken away while it ran.
// Where the partition has come back, the same record has been read anew, and may
// have been looked up before this turn had committed it: no hold keeps what this
// worker runs itself. Its caller holds the mutex.
func (e *Engine) outlived(l *lane) {
	l.conv = nil // its next turn here, if ever, comes after somebody else's
	e.outliving--
	e.releases++
	for it := range l.heads() {
		it.recall = true
	}
	l.lookUpWaiting()
}

func waitIdle(parts []*partition, limit <-chan time.Time) bool {
	for _, p := range parts {
		if p.idle == nil {
			continue
		}
		select {
		case <-p.idle:
		case <-limit:
			return false
		}
	}
	return true
}

func (e *Engine) forget(cl *kgo.Client, parts []*partition) {
	e.mu.Lock()
	defer e.mu.Unlock()
	resume := make(map[string][]int32)
	for _, p := range parts {
		if !p.handedOver || p.running == 0 {
			p.cancel()
		}
		if e.parts[p.tp] == p {
			delete(e.parts, p.tp)
		}
		if p.paused {
			// The client would keep it paused if it came back.
			resume[p.tp.topic] = append(resume[p.tp.topic], p.tp.partition)
		}
	}
	if len(resume) > 0 {
		cl.ResumeFetchPartitions(resume)
	}
	e.metrics.partitions.Set(float64(len(e.parts)))
	e.lookAtIntake()
}

// TopicID returns the id that ids of bare records derive from. Brokers that do
// not tell theirs get one that follows from the name.
func TopicID(t kgo.FetchTopic) [16]byte {
	if t.TopicID != [16]byte{} {
		return t.TopicID
	}
	sum := sha256.Sum256([]byte(t.Topic))
	return [16]byte(sum[:16])
}
