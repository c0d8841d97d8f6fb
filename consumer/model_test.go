package consumer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

var (
	modelSeed      = flag.Uint64("model.seed", 0, "run the one history of this seed")
	modelHistories = flag.Int("model.histories", 60, "how many random histories to run")
)

// Several engines share a log, a group, a store and a Redis. They are started,
// given partitions, asked for them back, robbed of them, frozen out of the group,
// stopped and killed at random moments, while tasks come in, turns take their time, fail,
// journal, ignore their end, and commits go wrong. At every moment
//
//   - what is committed passes no offset whose task is not complete, never goes
//     back, and is of a partition that its worker owns;
//   - a conversation has one turn, tasks of a priority run in the order of the log,
//     and a task that has journaled is not overtaken;
//   - no turn starts beyond its partition's fence, or of a task that was complete
//     when its worker was given the partition;
//   - a turn is not told to end when its partition moves in order.
//
// And when the faults end, every task gets done, every offset is committed, and
// no slot, byte, lane, hold or announcement is left over.
//
// A failure names its seed: go test ./consumer -run AnyHistory -model.seed=…
func TestEnginesKeepTheRulesInAnyHistory(t *testing.T) {
	server := miniredis.RunT(t)
	if *modelSeed != 0 {
		synctest.Test(t, func(t *testing.T) { runHistory(t, *modelSeed, server) })
		return
	}
	base := rand.Uint64() >> 1
	runs := 0
	for i := range *modelHistories {
		seed := base + uint64(i)
		synctest.Test(t, func(t *testing.T) { runs += runHistory(t, seed, server) })
		if t.Failed() {
			t.Fatalf("replay with -model.seed=%d", seed)
		}
	}
	t.Logf("%d histories from seed %d, %d turns", *modelHistories, base, runs)
	if runs < 10**modelHistories {
		t.Errorf("%d turns in %d histories: the histories show nothing", runs, *modelHistories)
	}
}

// runHistory returns how many turns ran.
func runHistory(t *testing.T, seed uint64, server *miniredis.Miniredis) int {
	server.FlushAll()
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, seed, server.Addr())
	clock, stopClock := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // Redis lives in fake time, too
		defer close(done)
		for sleep(clock, 100*time.Millisecond) {
			server.FastForward(100 * time.Millisecond)
		}
	}()
	w.join(random)
	w.join(random)
	sent := make(map[string]int)
	for range 40 + random.IntN(60) {
		sleep(t.Context(), time.Duration(random.Int64N(int64(250*time.Millisecond))))
		w.step(random, server, sent)
		if w.hasBroken() {
			break
		}
	}
	if !w.hasBroken() {
		w.heal(random)
	}
	w.mu.Lock()
	members := slices.Clone(w.members)
	for _, m := range members {
		if !m.leaving {
			m.drain()
		}
	}
	w.mu.Unlock()
	for _, m := range members {
		m.waits.Wait()
	}
	stopClock()
	<-done
	return w.total
}

func (w *world) hasBroken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

// step does one thing.
func (w *world) step(random *rand.Rand, server *miniredis.Miniredis, sent map[string]int) {
	if op := random.IntN(100); op < 45 {
		w.send(random, sent)
		return
	} else if op < 49 && w.alive() < 4 {
		w.join(random)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.members[random.IntN(len(w.members))]
	up := !m.leaving && m.busy == 0
	switch op := random.IntN(100); {
	case op < 40:
		w.giveFree(random)
	case op < 70:
		if owned := w.ownedBy(m); up && len(owned) > 0 {
			random.Shuffle(len(owned), func(a, b int) { owned[a], owned[b] = owned[b], owned[a] })
			m.revoke(owned[:1+random.IntN(len(owned))])
		}
	case op < 78:
		if up && m.listed {
			m.expel(time.Duration(random.Int64N(int64(4 * time.Second))))
		}
	case op < 84:
		if !m.leaving && w.aliveLocked() > 1 {
			m.crash(time.Duration(random.Int64N(int64(6 * time.Second))))
		}
	case op < 89:
		if up && w.aliveLocked() > 1 {
			m.drain()
		}
	case op < 97:
		m.slow = time.Now().Add(time.Duration(random.Int64N(int64(5 * time.Second))))
	case w.seed%4 == 0: // most histories have no such fault: it excuses too much
		w.excused = true
		if random.IntN(2) == 0 {
			server.FlushAll()
		} else {
			w.redisDown = time.Now().Add(time.Duration(random.Int64N(int64(12 * time.Second))))
		}
	}
}

func (w *world) alive() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.aliveLocked()
}

func (w *world) aliveLocked() (n int) {
	for _, m := range w.members {
		if !m.leaving {
			n++
		}
	}
	return n
}

func (w *world) ownedBy(m *peer) (numbers []int32) {
	for n := range int32(worldNumbers) {
		if w.owner[n] == m {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// giveFree assigns what nobody owns.
func (w *world) giveFree(random *rand.Rand) {
	var listed []*peer
	for _, m := range w.members {
		if m.listed && !m.leaving && m.busy == 0 {
			listed = append(listed, m)
		}
	}
	if len(listed) == 0 {
		return
	}
	shares := make(map[*peer][]int32)
	for n := range int32(worldNumbers) {
		if w.owner[n] == nil {
			m := listed[random.IntN(len(listed))]
			shares[m] = append(shares[m], n)
		}
	}
	for _, m := range listed {
		if len(shares[m]) > 0 {
			m.assign(shares[m], time.Duration(random.Int64N(int64(60*time.Millisecond))))
		}
	}
}

// send puts a few tasks into the log; some have no conversation, some stand there
// twice, some are none.
func (w *world) send(random *rand.Rand, sent map[string]int) {
	priorities := millrace.DefaultPriorities()
	for range 1 + random.IntN(5) {
		c := random.IntN(6)
		conversation, number := fmt.Sprintf("c%d", c), int32(c%worldNumbers)
		if c == 5 {
			conversation, number = "", random.Int32N(worldNumbers)
		}
		p := priorities[random.IntN(len(priorities))]
		switch what := random.IntN(20); {
		case what == 0:
			w.append(&kgo.Record{Topic: Topic("t.", p), Partition: number, Key: []byte(conversation)}) // no value: not a task
			continue
		case what == 1 || conversation == "" && what < 6:
			again := task(conversation, max(0, sent[conversation+string(p)]-1), p)
			w.produce(number, &again)
			if sent[conversation+string(p)] == 0 {
				sent[conversation+string(p)] = 1
			}
			continue
		}
		t := task(conversation, sent[conversation+string(p)], p)
		sent[conversation+string(p)]++
		w.produce(number, &t)
	}
}

// run is a handler call.
type run struct {
	by           *peer
	conversation string
	task         string
	ctx          context.Context //nolint:containedctx // asked whether the call has been told to end
	epoch        int             // of its partition's assignment
	// excused: its worker was out of the group, and could not know of others.
	excused bool
}

// excuse lets the turns of a worker run beside others. The world's mutex is held.
func (w *world) excuse(m *peer) {
	for r := range w.runs {
		if r.by == m {
			r.excused = true
		}
	}
}

// begin checks that a turn may start.
func (m *peer) begin(ctx context.Context, turn *millrace.Turn) (r *run, try int) {
	w, task := m.w, turn.Task()
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.gone.Err() != nil {
		return nil, 0
	}
	r = &run{by: m, conversation: task.Conversation, task: task.ID, ctx: ctx, excused: !m.listed || w.excused || ctx.Err() != nil}
	w.started[task.ID]++
	w.total++
	w.tell("%s starts %s", m.name, task.ID)
	w.mustNotBeDone(r)
	if r.conversation != "" {
		r.epoch = m.epoch[numberOf(r.conversation)]
		w.mustBeAlone(r)
		w.mustBeNext(m, task)
	}
	w.runs[r] = true
	return r, w.started[task.ID]
}

// mustNotBeDone checks that a turn starts below the fence, and that its task was
// not complete when its worker was given the partition. What a sender has repeated
// is left out: the repeat may have come after the look-up.
func (w *world) mustNotBeDone(r *run) {
	var (
		at     topicPartition
		offset int64
		found  int
	)
	for tp, log := range w.log {
		for _, l := range log {
			if l.task.ID == r.task {
				at, offset = tp, l.record.Offset
				found++
			}
		}
	}
	if found != 1 {
		return
	}
	if fence := w.store.fence(TopicID(kgo.FetchTopic{Topic: at.topic}), at.partition); offset >= fence {
		w.violation("%s starts %s at offset %d of %v, whose fence is at %d", r.by.name, r.task, offset, at, fence)
	}
	if !r.excused && w.store.completedBefore(r.task, r.by.completeAt[at.partition]) {
		w.violation("%s starts %s, which was complete when it was given %v", r.by.name, r.task, at)
	}
}

func (w *world) mustBeAlone(r *run) {
	for other := range w.runs {
		if other.conversation != r.conversation {
			continue
		}
		if other.by == r.by {
			w.violation("%s runs %s and %s at once", r.by.name, other.task, r.task)
		}
		// A turn that was told to end and does not listen is a zombie, too.
		if !r.excused && !other.excused && other.ctx.Err() == nil && r.ctx.Err() == nil {
			w.violation("%s runs %s while %s runs %s", r.by.name, r.task, other.by.name, other.task)
		}
	}
}

// mustBeNext checks a start against the log: what stands before in the same
// priority is done.
func (w *world) mustBeNext(m *peer, task *millrace.Task) {
	for tp, log := range w.log {
		if tp.topic != Topic("t.", task.Priority) {
			continue
		}
		for _, l := range log {
			if l.task.ID == task.ID {
				break
			}
			if l.task.Conversation == task.Conversation && !w.complete(l.task.Key()) {
				w.violation("%s starts %s before %s is done", m.name, task.ID, l.task.ID)
			}
		}
	}
	number := numberOf(task.Conversation)
	if p, ok := m.pinned[task.Conversation]; ok && p.key != task.Key() && p.epoch == m.epoch[number] && !w.complete(p.key) {
		w.violation("%s starts %s, overtaking %s, which has journaled", m.name, task.ID, p.key.ID)
	}
}

func numberOf(conversation string) int32 {
	var c int32
	_, _ = fmt.Sscanf(conversation, "c%d", &c)
	return c % worldNumbers
}

func (m *peer) end(r *run) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.tell("%s ends %s", m.name, r.task)
	delete(m.w.runs, r)
	if r.ctx.Err() != nil && !r.excused && !m.w.excused && !m.leaving {
		m.w.violation("%s was told to end %s, which could have gone on: whoever is next would have waited", m.name, r.task)
	}
}

// handle is the handler: how a turn goes follows from the seed, the task and how
// often it was tried.
func (m *peer) handle(ctx context.Context, turn *millrace.Turn) error {
	w, task := m.w, turn.Task()
	r, try := m.begin(ctx, turn)
	if r == nil {
		return errGone
	}
	defer m.end(r)
	fate := w.chance(task.ID, try)
	length := time.Duration(fate.ExpFloat64() * float64(300*time.Millisecond))
	stubborn, steps, what := fate.IntN(8) == 0, fate.IntN(4) == 0, fate.IntN(20)
	w.mu.Lock()
	if w.calm {
		what = 19
	}
	w.mu.Unlock()
	if steps {
		if _, err := turn.Step(ctx, "call", nil, func(context.Context) (millrace.StepResult, error) {
			return millrace.StepResult{}, nil
		}); err != nil {
			return err
		}
		w.mu.Lock()
		m.pinned[task.Conversation] = pin{task.Key(), m.epoch[numberOf(task.Conversation)]}
		w.mu.Unlock()
	}
	until := ctx
	if stubborn {
		until = m.gone
	}
	over := time.NewTimer(length)
	defer over.Stop()
	select {
	case <-over.C:
	case <-until.Done():
		return until.Err()
	case <-m.gone.Done():
		return errGone
	}
	switch what {
	case 0, 1, 2:
		return errors.New("try again")
	case 3:
		return millrace.Unavailable(errors.New("the provider is out"))
	case 4:
		return millrace.Permanent(errors.New("never"))
	case 5:
		panic("a bug")
	}
	if task.Conversation == "" {
		return turn.Result(task.ID)
	}
	return appendTask(ctx, turn)
}

// heal ends all faults and waits until all is done.
func (w *world) heal(random *rand.Rand) {
	w.mu.Lock()
	w.calm = true
	w.redisDown = time.Time{}
	for _, m := range w.members {
		m.slow = time.Time{}
	}
	w.mu.Unlock()
	w.join(random)
	missing := ""
	for range 300 {
		sleep(w.t.Context(), 200*time.Millisecond)
		w.mu.Lock()
		w.giveFree(random)
		missing = w.unfinished()
		broken := w.broken
		w.mu.Unlock()
		if missing == "" || broken {
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violation("a minute after the last fault: %s", missing)
}

// unfinished says what is not as it must be in the end. The world's mutex is held.
func (w *world) unfinished() string {
	var found []string
	note := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	for tp, log := range w.log {
		for _, l := range log {
			if !w.complete(l.task.Key()) {
				note("task %s at %v %d is not done", l.task.ID, tp, l.record.Offset)
			}
		}
		if at := w.commits[tp].offset; at != w.end(tp) {
			note("%v is committed up to %d of %d", tp, at, w.end(tp))
		}
	}
	for _, m := range w.members {
		if m.gone.Err() == nil {
			m.leftovers(note)
		}
	}
	slices.Sort(found)
	return strings.Join(found[:min(len(found), 12)], "; ")
}

// leftovers notes what an idle engine must not hold.
func (m *peer) leftovers(note func(format string, args ...any)) {
	e := m.Engine
	e.mu.Lock()
	defer e.mu.Unlock()
	for p, n := range e.waiting {
		if n != 0 {
			note("%s accounts for %d bytes of priority %d", m.name, n, p)
		}
	}
	if n := len(e.lanes) - e.cache.count; n != 0 {
		note("%s has %d lanes with something to do", m.name, n)
	}
	if e.schedule.free != e.cfg.Slots {
		note("%s has %d of %d slots free", m.name, e.schedule.free, e.cfg.Slots)
	}
	for p, n := range e.schedule.running {
		if n != 0 {
			note("%s counts %d turns of priority %d", m.name, n, p)
		}
	}
	if len(e.holds) != 0 || len(e.withdrawals) != 0 {
		note("%s has %d holds and %d withdrawals", m.name, len(e.holds), len(e.withdrawals))
	}
}
