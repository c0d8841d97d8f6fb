package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace"
)

// world is what the workers of a history share: one log, one group, one store
// and one Redis. It plays the client and the coordinator and watches what the
// engines do. Everything in it happens in fake time.
type world struct {
	t     *testing.T
	seed  uint64
	redis string // address
	store *memoryStore

	mu      sync.Mutex
	log     map[topicPartition][]logged
	gaps    *rand.Rand
	commits map[topicPartition]offsetCommit
	owner   map[int32]*peer
	members []*peer
	runs    map[*run]bool
	started map[string]int // task -> runs so far
	total   int            // runs
	calm    bool           // no more faults
	broken  bool           // a rule was broken
	// excused says that Redis has lost or refused something: what an earlier owner
	// runs may not be known, and a turn may run beside it.
	excused   bool
	redisDown time.Time // until then
}

// logged is a record of the log.
type logged struct {
	record *kgo.Record
	task   millrace.Task
}

const worldNumbers = 3

func newWorld(t *testing.T, seed uint64, redisAddr string) *world {
	return &world{
		t: t, seed: seed, redis: redisAddr, store: newMemoryStore(),
		log: make(map[topicPartition][]logged), gaps: rand.New(rand.NewPCG(seed, 1)),
		commits: make(map[topicPartition]offsetCommit), owner: make(map[int32]*peer),
		runs: make(map[*run]bool), started: make(map[string]int),
	}
}

// violation notes that a rule was broken. The first one ends the history.
func (w *world) violation(format string, args ...any) {
	if !w.broken {
		w.broken = true
		w.t.Errorf("seed %d, after %s: %s", w.seed, time.Since(worldBegan), fmt.Sprintf(format, args...))
	}
}

// tell logs what happens when a single history is replayed.
func (w *world) tell(format string, args ...any) {
	if *modelSeed != 0 {
		w.t.Logf("%12s  %s", time.Since(worldBegan), fmt.Sprintf(format, args...))
	}
}

// worldBegan is when time begins in every synctest bubble.
var worldBegan = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// chance derives what happens to a try from the seed and the try alone, so that
// it does not depend on who comes first.
func (w *world) chance(what string, try int) *rand.Rand {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s %d", what, try)
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

// produce appends a task to the log, sometimes behind a gap, as markers of
// transactions leave them.
func (w *world) produce(number int32, task *millrace.Task) {
	r, err := task.Record()
	if err != nil {
		w.t.Fatal(err)
	}
	kr := &kgo.Record{Topic: Topic("t.", task.Priority), Partition: number, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		kr.Headers = append(kr.Headers, kgo.RecordHeader(h))
	}
	w.append(kr)
}

func (w *world) append(r *kgo.Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tp := topicPartition{r.Topic, r.Partition}
	r.Offset = w.end(tp)
	if w.gaps.IntN(4) == 0 {
		r.Offset += w.gaps.Int64N(4)
	}
	it := newItem(r, TopicID(kgo.FetchTopic{Topic: r.Topic}))
	w.log[tp] = append(w.log[tp], logged{r, it.task})
}

func (w *world) end(tp topicPartition) int64 {
	if log := w.log[tp]; len(log) > 0 {
		return log[len(log)-1].record.Offset + 1
	}
	return 0
}

func (w *world) complete(key millrace.Key) bool {
	found, _ := w.store.Completed(context.Background(), []millrace.Key{key})
	return found[key]
}

// taken judges a commit that the coordinator accepts.
func (w *world) taken(m *peer, tp topicPartition, c offsetCommit) {
	if before := w.commits[tp]; c.offset < before.offset {
		w.violation("%s commits %d of %v, %d was committed", m.name, c.offset, tp, before.offset)
	}
	done, err := decodeMetadata(c.offset, c.metadata)
	if err != nil {
		w.violation("%s commits metadata %q of %v: %v", m.name, c.metadata, tp, err)
	}
	if c.offset > w.end(tp) {
		w.violation("%s commits %d of %v, which ends at %d", m.name, c.offset, tp, w.end(tp))
	}
	for _, l := range w.log[tp] {
		if o := l.record.Offset; (o < c.offset || within(done, o)) && !w.complete(l.task.Key()) {
			w.violation("%s commits %d and %v of %v: task %s at %d is not done", m.name, c.offset, done, tp, l.task.ID, o)
		}
	}
	w.commits[tp] = c
}

// peer is a worker of a world.
type peer struct {
	*Engine
	w    *world
	name string
	stop context.CancelFunc
	// gone ends when the process has.
	gone     context.Context //nolint:containedctx // the life of a process
	kill     context.CancelFunc
	loops    sync.WaitGroup // of its engine and its client
	waits    sync.WaitGroup // all else
	callback chan func()

	// Guarded by the world's mutex.
	listed  bool // the coordinator knows it
	leaving bool
	busy    int // callbacks that have not returned
	told    map[int32]bool
	epoch   map[int32]int
	// completeAt is how many tasks were complete when it was given a number.
	completeAt map[int32]int
	position   map[topicPartition]int64
	from       map[topicPartition]int64 // where reading began
	pinned     map[string]pin           // by conversation
	slow       time.Time                // until then Redis is slow for it
	commits    int
}

// pin is a task that has journaled a step.
type pin struct {
	key   millrace.Key
	epoch int
}

var errGone = millrace.Unavailable(errors.New("the process is gone"))

// join starts a worker.
func (w *world) join(random *rand.Rand) *peer {
	m := &peer{
		w: w, name: fmt.Sprintf("w%d", len(w.members)), callback: make(chan func(), 64), listed: true,
		told: make(map[int32]bool), epoch: make(map[int32]int), completeAt: make(map[int32]int), position: make(map[topicPartition]int64),
		from: make(map[topicPartition]int64), pinned: make(map[string]pin),
	}
	client := redis.NewClient(&redis.Options{
		Addr: w.redis, MaxRetries: -1,
		// A connection says nothing of its own, which would be slow as well.
		Protocol: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	client.AddHook(m)
	slots := 1 + random.IntN(5)
	var reserved map[millrace.Priority]int
	if slots > 2 {
		reserved = map[millrace.Priority]int{millrace.High: 1}
	}
	engine, err := New(Config{
		Kafka: []kgo.Opt{kgo.SeedBrokers("none")}, TopicPrefix: "t.", Handler: millrace.HandlerFunc(m.handle), Store: m,
		Journal: memoryJournal{}, Fences: m, Redis: client, Slots: slots, Reserved: reserved, AgingAfter: 200 * time.Millisecond,
		RetryMin: 10 * time.Millisecond, RetryMax: 500 * time.Millisecond, DrainTimeout: 2 * time.Second, CacheBytes: 4000,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	m.Engine = engine
	m.sendCommits = m.coordinator
	m.fenceStep = 1 + random.Int64N(12)
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.gone, m.kill = context.WithCancel(context.Background())
	m.loops.Go(func() { m.commitLoop(ctx, nil) })
	m.loops.Go(func() { m.lookUpLoop(ctx) })
	m.loops.Go(func() { m.fenceLoop(ctx) })
	m.loops.Go(func() { m.handoverLoop(ctx) })
	polls := rand.New(rand.NewPCG(w.seed, uint64(len(w.members))+100))
	m.loops.Go(func() { m.poll(ctx, polls) })
	m.loops.Go(func() {
		for {
			select {
			case f := <-m.callback:
				f()
			case <-ctx.Done():
				return
			}
		}
	})
	m.waits.Go(func() {
		<-m.gone.Done()
		m.loops.Wait()
		_ = client.Close()
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members = append(w.members, m)
	return m
}

// soon has the client call back, one call at a time as the client does.
func (m *peer) soon(f func()) {
	m.busy++
	m.callback <- func() {
		f()
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		m.busy--
	}
}

func (m *peer) topicsOf(numbers []int32) map[string][]int32 {
	out := make(map[string][]int32)
	for topic := range m.topics {
		out[topic] = slices.Clone(numbers)
	}
	return out
}

// assign gives numbers that nobody owns to a worker. The world's mutex is held.
func (m *peer) assign(numbers []int32, pause time.Duration) {
	w := m.w
	w.tell("%s is given %v", m.name, numbers)
	for _, n := range numbers {
		w.owner[n] = m
	}
	m.soon(func() {
		w.mu.Lock()
		for _, n := range numbers {
			m.told[n] = true
			m.epoch[n]++
			m.completeAt[n] = w.store.completed()
		}
		w.mu.Unlock()
		m.onAssigned(context.Background(), nil, m.topicsOf(numbers))
		sleep(m.gone, pause)
		w.mu.Lock()
		resp := kmsg.NewPtrOffsetFetchResponse()
		for topic := range m.topics {
			t := kmsg.NewOffsetFetchResponseTopic()
			t.Topic = topic
			for _, n := range numbers {
				p := kmsg.NewOffsetFetchResponseTopicPartition()
				c := w.commits[topicPartition{topic, n}]
				p.Partition, p.Offset, p.Metadata = n, c.offset, &c.metadata
				t.Partitions = append(t.Partitions, p)
			}
			resp.Topics = append(resp.Topics, t)
		}
		w.mu.Unlock()
		_ = m.onOffsetsFetched(context.Background(), nil, resp)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if m.told[p.Partition] {
					tp := topicPartition{t.Topic, p.Partition}
					m.position[tp], m.from[tp] = p.Offset, p.Offset
				}
			}
		}
	})
}

// revoke takes numbers away in order. The world's mutex is held.
func (m *peer) revoke(numbers []int32) {
	m.w.tell("%s is asked for %v", m.name, numbers)
	m.soon(func() {
		m.stopReading(numbers)
		m.onRevoked(context.Background(), nil, m.topicsOf(numbers))
		m.givenUp(numbers)
	})
}

func (m *peer) stopReading(numbers []int32) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for topic := range m.topics {
		for _, n := range numbers {
			delete(m.position, topicPartition{topic, n})
		}
	}
}

// givenUp notes that the worker has said so.
func (m *peer) givenUp(numbers []int32) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell("%s has given %v up", m.name, numbers)
	for _, n := range numbers {
		delete(m.told, n)
		if w.owner[n] == m {
			delete(w.owner, n)
		}
	}
}

// expel makes a worker a zombie: its session is over, others get what it had,
// and it learns so later. The world's mutex is held.
func (m *peer) expel(later time.Duration) {
	w := m.w
	w.tell("%s is out of the group, and learns it in %s", m.name, later)
	m.listed = false
	w.excuse(m)
	for n, o := range w.owner {
		if o == m {
			delete(w.owner, n)
		}
	}
	m.busy++ // nothing else is asked of it before
	m.waits.Go(func() {
		sleep(m.gone, later)
		w.mu.Lock()
		defer w.mu.Unlock()
		m.busy--
		m.soon(func() {
			w.mu.Lock()
			numbers := slices.Collect(maps.Keys(m.told))
			w.mu.Unlock()
			m.stopReading(numbers)
			m.onLost(context.Background(), nil, m.topicsOf(numbers))
			m.mustHaveEnded(numbers)
			m.givenUp(numbers)
			w.mu.Lock()
			defer w.mu.Unlock()
			m.listed = !m.leaving && m.gone.Err() == nil
		})
	})
}

// mustHaveEnded checks that the turns of lost partitions have been told to end.
func (m *peer) mustHaveEnded(lost []int32) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for r := range m.w.runs {
		number := numberOf(r.conversation)
		if r.by == m && r.conversation != "" && r.epoch == m.epoch[number] && slices.Contains(lost, number) && r.ctx.Err() == nil {
			m.w.violation("%s has lost partition %d and lets %s go on", m.name, number, r.task)
		}
	}
}

// crash ends a worker's process at once. The coordinator notices later. The
// world's mutex is held.
func (m *peer) crash(session time.Duration) {
	w := m.w
	w.tell("%s crashes", m.name)
	m.kill()
	m.listed, m.leaving = false, true
	for r := range w.runs {
		if r.by == m {
			delete(w.runs, r)
		}
	}
	m.waits.Go(func() {
		// What is left of it in this process ends; nothing of that reaches the world.
		m.startNoMore()
		m.stop()
		m.onLost(context.Background(), nil, m.topicsOf([]int32{0, 1, 2}))
		m.awaitSlots()
	})
	m.waits.Go(func() {
		sleep(w.t.Context(), session)
		m.givenUp([]int32{0, 1, 2})
	})
}

// drain stops a worker in order, as Run does. The world's mutex is held.
func (m *peer) drain() {
	m.w.tell("%s is told to stop", m.name)
	m.leaving = true
	m.waits.Go(func() {
		m.startNoMore()
		left := make(chan struct{})
		m.w.mu.Lock()
		m.soon(func() {
			m.w.mu.Lock()
			numbers := slices.Collect(maps.Keys(m.told))
			m.w.mu.Unlock()
			m.stopReading(numbers)
			m.onRevoked(context.Background(), nil, m.topicsOf(numbers))
			m.givenUp(numbers)
			close(left)
		})
		m.w.mu.Unlock()
		select {
		case <-left:
		case <-m.gone.Done(): // it crashes meanwhile
			return
		}
		m.awaitSlots()
		m.stop()
		m.loops.Wait()
		m.withdrawEnded(context.Background())
		m.w.mu.Lock()
		m.listed = false
		for r := range m.w.runs {
			if r.by == m { // a handler that ignored its context
				delete(m.w.runs, r)
			}
		}
		m.w.mu.Unlock()
		m.kill()
	})
}

// poll plays the client's fetches. What was fetched may come late.
func (m *peer) poll(ctx context.Context, random *rand.Rand) {
	for {
		if !sleep(ctx, 5*time.Millisecond+time.Duration(random.Int64N(int64(60*time.Millisecond)))) {
			return
		}
		m.round.run(ctx, func(context.Context) kgo.Fetches {
			fetches := m.fetch(random)
			if random.IntN(12) == 0 {
				sleep(m.gone, time.Duration(random.Int64N(int64(1500*time.Millisecond))))
			}
			return fetches
		}, func(fetches kgo.Fetches) {
			if m.gone.Err() == nil {
				m.accept(fetches)
			}
		})
	}
}

func (m *peer) fetch(random *rand.Rand) kgo.Fetches {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	var topics []kgo.FetchTopic
	for _, tp := range slices.SortedFunc(maps.Keys(m.position), func(a, b topicPartition) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
	}) {
		var records []*kgo.Record
		most := 1 + random.IntN(6)
		if random.IntN(20) == 0 { // a broker's answer was lost: the client asks again
			m.position[tp] = max(m.from[tp], m.position[tp]-random.Int64N(8))
		}
		for _, l := range w.log[tp] {
			if l.record.Offset >= m.position[tp] && len(records) < most {
				r := *l.record
				records = append(records, &r)
			}
		}
		if len(records) == 0 {
			continue
		}
		m.position[tp] = records[len(records)-1].Offset + 1
		w.tell("%s fetches %v %d to %d", m.name, tp, records[0].Offset, m.position[tp]-1)
		topics = append(topics, kgo.FetchTopic{Topic: tp.topic, Partitions: []kgo.FetchPartition{{
			Partition: tp.partition, HighWatermark: w.end(tp), Records: records,
		}}})
	}
	return kgo.Fetches{{Topics: topics}}
}

// coordinator takes commits. Like Kafka's it asks whether the member is one, not
// whether it owns the partition; that the model asks.
func (m *peer) coordinator(_ context.Context, _ *kgo.Client, commits map[topicPartition]offsetCommit) error {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.gone.Err() != nil {
		return errGone
	}
	for tp := range commits {
		if !m.told[tp.partition] {
			w.violation("%s commits %v after it gave it up", m.name, tp)
		}
	}
	if !m.listed {
		return kerr.UnknownMemberID
	}
	m.commits++
	fate := w.chance(m.name+" commits", m.commits).IntN(20)
	if fate == 0 && !w.calm {
		return kerr.RebalanceInProgress
	}
	for tp, c := range commits {
		w.tell("%s commits %v %d %q", m.name, tp, c.offset, c.metadata)
		w.taken(m, tp, c)
	}
	if fate == 1 && !w.calm {
		return errors.New("connection lost")
	}
	return nil
}

// The store as a worker sees it: slow, at times out, at times without an answer.

func (m *peer) Open(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	if m.gone.Err() != nil {
		return millrace.Conversation{}, errGone
	}
	return m.w.store.Open(ctx, task)
}

func (m *peer) Reload(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	return m.Open(ctx, task)
}

func (m *peer) Completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	if err := m.query(ctx, "looks up"); err != nil {
		return nil, err
	}
	return m.w.store.Completed(ctx, keys)
}

func (m *peer) RaiseFences(ctx context.Context, fences []millrace.Fence) ([]int64, error) {
	if err := m.query(ctx, "raises fences"); err != nil {
		return nil, err
	}
	return m.w.store.RaiseFences(ctx, fences)
}

// query takes its time, and fails at times.
func (m *peer) query(ctx context.Context, what string) error {
	m.w.mu.Lock()
	m.commits++
	fate := m.w.chance(m.name+" "+what, m.commits)
	calm := m.w.calm
	m.w.mu.Unlock()
	if !calm {
		sleep(ctx, time.Duration(fate.Int64N(int64(30*time.Millisecond))))
		if fate.IntN(20) == 0 {
			return millrace.Unavailable(errors.New("the database is out"))
		}
	}
	if m.gone.Err() != nil {
		return errGone
	}
	return nil
}

func (m *peer) Coalesce(ctx context.Context, leader millrace.Key, members []millrace.Key, anew bool) ([]millrace.Key, error) {
	if m.gone.Err() != nil {
		return nil, errGone
	}
	return m.w.store.Coalesce(ctx, leader, members, anew)
}

func (m *peer) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	m.w.mu.Lock()
	fate := m.w.chance("commit of "+c.Task.ID, m.w.started[c.Task.ID])
	calm := m.w.calm
	m.w.mu.Unlock()
	slow, what := time.Duration(fate.Int64N(int64(200*time.Millisecond))), fate.IntN(20)
	if calm || slow > 40*time.Millisecond {
		slow, what = 0, what+2*btoi(calm)
	}
	if !sleep(ctx, slow/2) {
		return 0, ctx.Err()
	}
	if what == 0 {
		return 0, millrace.Unavailable(errors.New("the database is out"))
	}
	if m.gone.Err() != nil {
		return 0, errGone
	}
	outcome, err := m.w.store.Commit(ctx, c)
	sleep(ctx, slow/2)
	if what == 1 || m.gone.Err() != nil {
		return 0, millrace.Unavailable(errors.New("connection lost"))
	}
	return outcome, err
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A peer is a hook of its Redis client.

func (m *peer) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (m *peer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if err := m.wayToRedis(ctx); err != nil {
			cmd.SetErr(err)
			return err
		}
		return next(ctx, cmd)
	}
}

func (m *peer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if err := m.wayToRedis(ctx); err != nil {
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
			return err
		}
		return next(ctx, cmds)
	}
}

func (m *peer) wayToRedis(ctx context.Context) error {
	m.w.mu.Lock()
	now := time.Now()
	down, slow := now.Before(m.w.redisDown), now.Before(m.slow)
	m.w.mu.Unlock()
	switch {
	case m.gone.Err() != nil:
		return errGone
	case down:
		return errors.New("redis is out")
	case slow && !sleep(ctx, 180*time.Millisecond):
		return ctx.Err()
	}
	return nil
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
