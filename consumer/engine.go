package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// Engine runs the turns of one worker.
type Engine struct {
	cfg     Config
	log     zerolog.Logger
	metrics *metrics
	topics  map[string]int // topic -> index into cfg.Priorities

	// mu guards everything below it, the lanes and the partitions.
	mu       sync.Mutex
	parts    map[topicPartition]*partition
	lanes    map[laneKey]*lane
	schedule *schedule
	cache    cache
	draining bool
	// dependencies are those that the engine asks for itself, out how many of
	// them are so that no turn starts. The list itself does not change.
	dependencies    []*watched
	kafka, postgres *watched
	out             int
	breakers        breakers
	// waking says that a slot has been woken and has not looked for a lane yet,
	// between how many slots have ended a turn and wait for the mutex to look.
	waking  bool
	between atomic.Int32
	waiting []int64 // bytes of items in lanes and slots, by priority
	full    []bool  // by priority: waiting is above its bound
	stuck   []bool  // by priority: it has been full for a while, and is paused
	unkeyed uint64  // how many lanes of unkeyed tasks there have been
	slots   sync.WaitGroup
	running []*lane // those that have a slot, each at its lane's slot
	// toLookUp holds, by priority, what waits to be looked up.
	toLookUp [][]fetched
	repeats  repeats
	// fenceStep is [defaultFenceStep], but in tests.
	fenceStep int64

	// handover is nil without Redis. holds are the lanes that wait for earlier
	// owners, withdrawals the announcements of turns that have ended.
	handover    *handover
	holds       map[holdKey]*hold
	withdrawals []holdKey
	// releases is how often holds have been released, or turns have ended that
	// outlived their assignment. outliving is how many of these run.
	releases  uint64
	outliving int
	// announcing is taken while announcements are made or taken back.
	announcing exclusive
	suspects   suspects
	notes      map[noteKey]note // what is to be written about tasks
	// writing serialises what is written about tasks, so that none of it overtakes.
	writing exclusive
	// cancels are the runs of tasks that are said to be cancelled.
	cancels keySet
	// interrupts are what is to be ended for tasks that have come.
	interrupts []interrupt

	// leases is nil without Redis, as is registry.
	leases   *leases
	registry *registry
	// overlaps are the priorities of other pools that have been warned of, in the
	// form pool/priority. It belongs to the beat.
	overlaps  map[string]bool
	startedAt time.Time

	// commitMu serialises offset commits with the loss of partitions: what is
	// committed was owned when the commit began and is until it ends.
	commitMu exclusive
	// sendCommits is [sendCommits], unless a test plays the coordinator.
	sendCommits func(context.Context, *kgo.Client, map[topicPartition]offsetCommit) error

	outages     sparse // log lines
	fetchErrors sparse

	round pollRound

	intake   chan struct{} // asks for a look at what is to be paused
	room     chan struct{} // says that a priority is not full any more
	ended    chan struct{} // asks for notes to be written and withdrawals to be carried out
	unlooked chan struct{} // says that something waits to be looked up
	fencing  chan struct{} // asks for fences to be raised
	rumours  chan struct{} // says that turns may have to be ended
	pulses   pulses
	joined   atomic.Bool
	// stuckSince is since when a turn has been stuck, in unix nanoseconds, 0 for none.
	stuckSince atomic.Int64
}

// New returns an engine that does nothing until Run.
func New(cfg Config) (*Engine, error) {
	if err := errors.Join(cfg.validate(), cfg.setDefaults()); err != nil {
		return nil, fmt.Errorf("consumer config: %w", err)
	}
	e := &Engine{
		cfg:     cfg,
		log:     zerolog.Nop(),
		metrics: newMetrics(cfg.Metrics, cfg.Priorities),
		topics:  make(map[string]int),
		parts:   make(map[topicPartition]*partition),
		lanes:   make(map[laneKey]*lane),
		waiting: make([]int64, len(cfg.Priorities)),
		full:    make([]bool, len(cfg.Priorities)),
		stuck:   make([]bool, len(cfg.Priorities)),
		holds:   make(map[holdKey]*hold),
		notes:   make(map[noteKey]note),

		overlaps:  make(map[string]bool),
		startedAt: time.Now(),

		intake: make(chan struct{}, 1),
		room:   make(chan struct{}, 1),
		ended:  make(chan struct{}, 1),

		announcing:  newExclusive(),
		writing:     newExclusive(),
		commitMu:    newExclusive(),
		sendCommits: sendCommits,

		toLookUp: make([][]fetched, len(cfg.Priorities)),
		unlooked: make(chan struct{}, 1),
		fencing:  make(chan struct{}, 1),

		fenceStep: defaultFenceStep,
		rumours:   make(chan struct{}, 1),
	}
	if cfg.Redis != nil {
		e.handover = newHandover(cfg.Redis, cfg.KeyPrefix, cfg.Pool)
		e.leases = newLeases(e.handover, cfg.KeyPrefix, cfg.Pool)
		e.leases.split.Store(cfg.Split)
		e.registry = newRegistry(cfg.Redis, cfg.KeyPrefix)
	}
	if cfg.Logger != nil {
		e.log = cfg.Logger.With().Str("part", "consumer").Str("pool", cfg.Pool).Logger()
	}
	reserved := make([]int, len(cfg.Priorities))
	for i, p := range cfg.Priorities {
		e.topics[Topic(cfg.TopicPrefix, p)] = i
		reserved[i] = cfg.Reserved[p]
	}
	e.cache.bound = cfg.CacheBytes
	e.pulses.init()
	e.initDependencies()
	e.schedule = newSchedule(cfg.Slots, reserved, cfg.AgingAfter)
	return e, nil
}

// Run joins the group and runs turns until ctx ends. Then it starts no more
// turns, announces the running ones, commits and leaves the group, so that all
// other conversations go on elsewhere at once; it lets the running turns finish
// for DrainTimeout and returns nil. Without Redis nobody could know of the
// running turns: then they finish first.
func (e *Engine) Run(ctx context.Context) error {
	// Everything below outlives ctx: a worker that drains is still a member of its
	// group, goes on polling and commits what its turns finish.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	cl, err := kgo.NewClient(append(slices.Clone(e.cfg.Kafka), e.clientOptions()...)...)
	if err != nil {
		return fmt.Errorf("open consumer: %w", err)
	}
	var background sync.WaitGroup
	background.Go(func() { e.pollLoop(work, cl) })
	background.Go(func() { e.commitLoop(work, cl) })
	background.Go(func() { e.intakeLoop(work, cl) })
	background.Go(func() { e.lookUpLoop(work) })
	background.Go(func() { e.fenceLoop(work) })
	background.Go(func() { e.watchdogLoop(work) })
	background.Go(func() { e.rumourLoop(work) })
	if e.cfg.Cancels != nil {
		background.Go(func() { e.hearCancels(work) })
	}
	if e.cfg.Erasures != nil {
		background.Go(func() { e.hearErasures(work) })
	}
	if e.handover != nil {
		background.Go(func() { e.handoverLoop(work) })
		background.Go(func() { e.leaseLoop(work) })
	}
	e.kafka.Check = cl.Ping
	for _, w := range e.dependencies {
		background.Go(func() { e.watch(work, w) })
	}

	<-ctx.Done()
	e.startNoMore()
	if e.handover != nil {
		e.leave(work, cl)
	}
	e.awaitSlots()
	if e.handover == nil {
		if err := e.commitOffsets(work, cl); err != nil {
			e.log.Warn().Err(err).Msg("cannot commit offsets on the way out; finished tasks will be recognised by their completions")
		}
		e.leave(work, cl)
	}
	stop()
	background.Wait()
	// Only now: the loop that has just ended may have put withdrawals back.
	e.withdrawEnded(context.WithoutCancel(ctx))
	if e.leases != nil {
		e.releaseAllLeases(context.WithoutCancel(ctx))
	}
	cl.Close()
	return nil
}

const leaveTimeout = 3 * time.Second

// leave leaves the group; the callback of the revocation announces and commits.
// A group that does not answer must not keep the worker from ending.
func (e *Engine) leave(ctx context.Context, cl *kgo.Client) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	err := cl.LeaveGroupContext(ctx)
	if err == nil && e.cfg.InstanceID != "" {
		// The client leaves a static member's place for its return. Whoever stops a
		// worker in order wants its partitions to go on now.
		group := Group(e.cfg.TopicPrefix, e.cfg.Pool)
		_, err = kadm.NewClient(cl).LeaveGroup(ctx, kadm.LeaveGroup(group).InstanceIDs(e.cfg.InstanceID))
	}
	if err != nil {
		e.log.Warn().Err(err).Msg("cannot leave the consumer group; it notices when the session times out")
	}
}

func (e *Engine) clientOptions() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ConsumerGroup(Group(e.cfg.TopicPrefix, e.cfg.Pool)),
		kgo.ConsumeTopics(e.topicNames()...),
		kgo.Balancers(Balancer()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The end of a transaction, such as the relay's, takes an offset. Passed over in
		// silence, the last one of a partition would count as waiting for ever.
		kgo.KeepControlRecords(),
		// A group that has not committed yet begins at the first task there is.
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.SessionTimeout(6 * time.Second),
		kgo.HeartbeatInterval(time.Second),
		// Longer than the session: a dead static member (InstanceID) leaves the group
		// by its session's end alone, and every rebalance that completes without it
		// begins that session anew. A rebalance that waits for the session instead
		// completes as soon as the dead one is out.
		kgo.RebalanceTimeout(8 * time.Second),
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(e.onAssigned),
		kgo.OnOffsetsFetched(e.onOffsetsFetched),
		kgo.OnPartitionsRevoked(e.onRevoked),
		kgo.OnPartitionsLost(e.onLost),
		kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.MaxConcurrentFetches(8),
	}
	if e.cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(e.cfg.InstanceID))
	}
	return opts
}

func (e *Engine) topicNames() []string {
	names := make([]string, 0, len(e.topics))
	for _, p := range e.cfg.Priorities {
		names = append(names, Topic(e.cfg.TopicPrefix, p))
	}
	return names
}

const pollTick = time.Second

// pollLoop moves records into lanes. It ticks even when there are none, so that
// a stuck loop can be told from an idle one.
func (e *Engine) pollLoop(ctx context.Context, cl *kgo.Client) {
	defer e.pulses.poll.end()
	poll := func(ctx context.Context) kgo.Fetches { return cl.PollRecords(ctx, 50_000) }
	closed := false
	for ctx.Err() == nil && !closed {
		e.pulses.poll.beat()
		e.awaitRoom(ctx)
		e.round.run(ctx, poll, func(fetches kgo.Fetches) {
			if closed = fetches.IsClientClosed(); closed {
				return
			}
			fetches.EachError(func(topic string, partition int32, err error) {
				if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
					return
				}
				e.noteFetchError(topic, partition, err)
			})
			if !fetches.Empty() {
				e.kafka.hear()
			}
			e.accept(fetches)
		})
	}
}

// accept decodes what was fetched and queues it.
func (e *Engine) accept(fetches kgo.Fetches) {
	fetches.EachTopic(func(t kgo.FetchTopic) {
		id := TopicID(t)
		t.EachPartition(func(p kgo.FetchPartition) {
			if len(p.Records) == 0 {
				return
			}
			items := make([]*item, len(p.Records))
			for i, r := range p.Records {
				if r.Attrs.IsControl() {
					items[i] = &item{offset: r.Offset, control: true}
					continue
				}
				items[i] = newItem(r, id)
			}
			e.enqueue(topicPartition{t.Topic, p.Partition}, id, p.HighWatermark, items)
		})
	})
}

func (e *Engine) enqueue(tp topicPartition, topicID [16]byte, highWatermark int64, items []*item) {
	e.mu.Lock()
	defer e.mu.Unlock()
	part := e.parts[tp]
	if part == nil || part.revoked {
		return // taken away between the fetch and now; its next owner has the records
	}
	if part.lookUpBelow < 0 {
		// Whatever was in the log when this worker began to read it may have been run
		// by a previous owner.
		part.lookUpBelow = highWatermark
		part.topicID = topicID
	}
	kept := items[:0]
	lookUp := false
	for _, it := range items {
		if !part.tracker.add(it.offset) {
			continue
		}
		if it.control {
			part.tracker.done(it.offset)
			continue
		}
		if within(part.finished, it.offset) {
			part.tracker.done(it.offset)
			e.metrics.redeliveries.Inc()
			continue
		}
		it.part, it.priority = part, part.priority
		it.task.Priority = e.cfg.Priorities[part.priority]
		part.setLookUp(it)
		// A redrive is looked up in its slot, right before it runs: the same one may
		// have been sent twice and stand in the log next to itself.
		lookUp = lookUp || it.lookUp && it.task.Redrive == 0
		e.waiting[it.priority] += it.size
		kept = append(kept, it)
	}
	e.adjustIntake(part)
	if lookUp || part.unlooked > 0 || e.beyondFence(part, part.tracker.last) {
		part.unlooked++
		e.toLookUp[part.priority] = append(e.toLookUp[part.priority], fetched{part, kept})
		signal(e.unlooked)
		return
	}
	now := time.Now()
	for _, it := range kept {
		e.queue(it, now)
	}
	e.dispatch()
}

func (e *Engine) laneOf(it *item) *lane {
	key := laneKey{partition: it.part.tp.partition, conversation: it.task.Conversation}
	if key.conversation == "" {
		if l := e.stillRuns(it); l != nil {
			return l
		}
		e.unkeyed++
		key.unkeyed = e.unkeyed // nothing orders unkeyed tasks: each has a lane of its own
	}
	l := e.lanes[key]
	if l == nil {
		l = newLane(key, len(e.cfg.Priorities))
		e.lanes[key] = l
	}
	return l
}

// rest keeps the conversation of a lane that does not run in the cache, and drops
// what has to go for it: conversations, and lanes with nothing else.
func (e *Engine) rest(l *lane) {
	if l.conv == nil || l.key.conversation == "" {
		return
	}
	for _, old := range e.cache.put(l) {
		old.conv = nil
		e.dropEmpty(old)
	}
}

// dropEmpty drops a lane that holds nothing. A timer that has fired and waits for
// the mutex may come here with a lane that was dropped meanwhile, when its
// conversation has another lane already.
func (e *Engine) dropEmpty(l *lane) {
	if !l.running && l.cached.size == 0 && l.head() == nil && e.lanes[l.key] == l {
		delete(e.lanes, l.key)
	}
}

// makeReady queues a lane for a slot when it has something to run now, and sets
// its timer when that comes later.
func (e *Engine) makeReady(l *lane, now time.Time) {
	if l.running || e.draining {
		return
	}
	l.unpark()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	it := l.head()
	if it == nil {
		e.schedule.remove(l)
		e.dropEmpty(l)
		return
	}
	if e.held(l, it) {
		e.schedule.remove(l)
		return
	}
	if br := e.breakers.holding(it, now); br != nil {
		e.schedule.remove(l)
		e.breakers.park(br, l, it, now)
		return
	}
	if wait := it.notBefore.Sub(now); wait > 0 {
		e.schedule.remove(l)
		e.wake(l, wait)
		return
	}
	if it.deaths != "" && it.deaths.count() >= sharedDeaths {
		e.schedule.remove(l)
		e.awaitVerdict(l, it)
		return
	}
	e.schedule.enqueue(l, it.priority, now)
}

// wake looks at a lane again after a while.
func (e *Engine) wake(l *lane, wait time.Duration) {
	l.timer = time.AfterFunc(wait, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		now := time.Now()
		e.makeReady(l, now)
		e.dispatch()
	})
}

// dispatch wakes a slot if there is a lane for one and no slot is about to look
// for one. Every slot that finds a lane wakes the next before it runs its turn:
// slots are filled one after the other, and turns that end at once are run by few
// of them, which keeps the others from fighting over the mutex.
func (e *Engine) dispatch() {
	if e.waking || e.between.Load() > 0 || e.draining || e.out > 0 || !e.mayStart() {
		return
	}
	e.waking = true
	e.slots.Go(e.runSlot)
}

// runSlot runs turns until no lane is left for it.
func (e *Engine) runSlot() {
	now := time.Now()
	e.mu.Lock()
	e.waking = false
	l, it := e.next(now)
	e.mu.Unlock()
	e.runTurns(l, it, now)
}

// runTurns runs an item, and then others, as one slot.
func (e *Engine) runTurns(l *lane, it *item, now time.Time) {
	defer func() {
		if l != nil && it.exitStack != "" {
			e.afterExit(l, it)
		}
	}()
	for l != nil {
		v := e.process(l, it, now)
		now = time.Now()
		e.between.Add(1)
		l, it = e.finish(l, it, v, now)
	}
}

// next takes the next item that may have a slot, books it as running, and wakes
// another slot if there is more to run.
func (e *Engine) next(now time.Time) (*lane, *item) {
	if e.draining || e.out > 0 {
		return nil, nil
	}
	l, alone, others := e.nextAlone(now)
	if others {
		l = e.schedule.pick(now)
	}
	if l == nil {
		return nil, nil
	}
	it := l.head()
	l.pop(it)
	l.unpark() // one that may run alone, or is to be given up, is not asked for its breaker again
	if e.cancels.has(it.task.Key()) {
		it.lookUp = true
	}
	if it.task.OnBusy == millrace.BusyCoalesce {
		it.gather(l)
	}
	e.cache.take(l)
	l.running, l.current = true, it
	l.slot = len(e.running)
	e.running = append(e.running, l)
	e.began(l, now, alone)
	it.part.running++
	e.metrics.busySlots.Inc()
	e.dispatch()
	return l, it
}

// finish books the end of a turn and picks the slot's next one.
func (e *Engine) finish(l *lane, it *item, v verdict, now time.Time) (*lane, *item) {
	e.mu.Lock()
	defer e.mu.Unlock()
	others := e.between.Add(-1)
	e.metrics.busySlots.Dec()
	e.over(l, it, now)
	l.running, l.current = false, nil
	e.vacate(l)
	e.schedule.release(it.priority)
	part := it.part
	part.running--
	if part.handedOver {
		e.endHandedOver(l, it)
	}
	if part.idle != nil && part.running == 0 {
		close(part.idle) // once: no turn of a partition starts after it was taken away
	}
	if it.probing {
		e.breakers.undecided(it)
	}
	switch {
	case v.kind == finished:
		if it.group != nil {
			e.endGroup(l, it, v.committed)
		}
		// Of a partition that is being revoked as well: its last commit is still to
		// come. After that the mark leads nowhere.
		part.tracker.done(it.offset)
		e.waiting[it.priority] -= it.size
		if it.recorded {
			e.noteForget(it)
		}
	case part.revoked || v.kind == dropped:
		e.waiting[it.priority] -= it.size
	default:
		it.notBefore = now.Add(v.delay)
		l.putBack(it)
	}
	if l.lease != "" && (v.kind != retry || part.revoked || !it.journaled) {
		e.endLease(l)
	}
	if part.revoked {
		e.outlived(l)
	}
	e.rest(l)
	e.adjustIntake(part)
	e.makeReady(l, now)
	if others >= enoughBetween {
		return nil, nil // they look for lanes, and wake further slots if these go on
	}
	return e.next(now)
}

// enoughBetween is how many slots may wait to look for a lane. Turns that end at
// once would otherwise be run by all slots there are, one handing the mutex to the
// other.
const enoughBetween = 2

// vacate takes a lane out of those that have a slot.
func (e *Engine) vacate(l *lane) {
	last := len(e.running) - 1
	moved := e.running[last]
	e.running[l.slot], moved.slot = moved, l.slot
	e.running[last] = nil
	e.running = e.running[:last]
}

func (e *Engine) startNoMore() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.draining = true
	e.unmarkAll()
	e.breakers.stop()
	for _, l := range e.lanes {
		if l.timer != nil {
			l.timer.Stop()
		}
	}
}

// awaitSlots waits for the running turns; those that outlive the limit are
// canceled.
func (e *Engine) awaitSlots() {
	idle := make(chan struct{})
	go func() {
		e.slots.Wait()
		close(idle)
	}()
	limit := time.NewTimer(e.cfg.DrainTimeout)
	defer limit.Stop()
	select {
	case <-idle:
		return
	case <-limit.C:
	}
	e.log.Warn().Dur("after", e.cfg.DrainTimeout).Msg("turns still running at the drain limit are canceled and will run elsewhere")
	e.mu.Lock()
	for _, l := range e.lanes {
		if l.running {
			l.current.part.cancel() // of a partition that has been given up, too
		}
	}
	e.mu.Unlock()
	limit.Reset(2 * time.Second)
	select {
	case <-idle:
	case <-limit.C:
		e.log.Error().Msg("a handler ignores its context; leaving without it")
	}
}
