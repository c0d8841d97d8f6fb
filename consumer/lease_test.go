package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"millrace"
)

// pool makes an engine one of a pool that shares conversations with others.
func pool(name string, client redis.UniversalClient, priorities ...millrace.Priority) func(*Config) {
	return func(c *Config) {
		c.Pool, c.Priorities, c.Redis, c.Split, c.Slots = name, priorities, client, true, 32
	}
}

func TestTurnsOfOneConversationInTwoPoolsNeverRunAtOnce(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	p := newPace(t)
	fast, _ := b.start(t, store, p.worker("fast"), pool("fast", client, millrace.High))
	bulk, _ := b.start(t, store, p.worker("bulk"), pool("bulk", client, millrace.Normal, millrace.Batch))
	const conversations, each = 20, 6
	var tasks []millrace.Task
	for n := range each {
		for c := range conversations {
			for _, prio := range millrace.DefaultPriorities() {
				tasks = append(tasks, task(fmt.Sprintf("c%d", c), n, prio))
			}
		}
	}
	b.send(t, tasks...)
	last := make(map[string]string)
	for _, c := range store.await(t, len(tasks)) {
		lane := c.Task.Conversation + string(c.Task.Priority)
		if before := last[lane]; before >= string(c.Task.Payload) {
			t.Errorf("%s: %s came after %s", lane, c.Task.Payload, before)
		}
		last[lane] = string(c.Task.Payload)
	}
	for _, tk := range tasks {
		if got := p.startsOf(tk.ID); len(strings.Fields(got)) != 1 {
			t.Errorf("%s started at %s, want once", tk.ID, got)
		}
	}
	for _, e := range []*Engine{fast, bulk} {
		if n := testutil.ToFloat64(e.metrics.secondRuns); n != 0 {
			t.Errorf("%v turns of pool %s ran for nothing", n, e.cfg.Pool)
		}
	}
	if n := testutil.ToFloat64(fast.metrics.leaseFailures); n != 0 {
		t.Errorf("%v failures", n)
	}
}

func TestABacklogInOnePoolLetsTheOtherHaveTheNextTurn(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	p := newPace(t)
	var backlog []millrace.Task
	for n := range 100 {
		backlog = append(backlog, task("c", n, millrace.Batch))
	}
	release := p.stopAt(backlog[10].ID)
	b.start(t, store, p.worker("bulk"), pool("bulk", client, millrace.Batch))
	fast, _ := b.start(t, store, p.worker("fast"), pool("fast", client, millrace.High))
	b.send(t, backlog...)
	eventually(t, "the eleventh runs", p.started(backlog[10].ID))
	b.send(t, task("c", 0, millrace.High))
	eventually(t, "the other pool waits", func() bool { return testutil.ToFloat64(fast.metrics.parked) == 1 })
	if busy := testutil.ToFloat64(fast.metrics.busySlots); busy != 0 {
		t.Errorf("%v slots are taken by a conversation that waits", busy)
	}
	release()
	order := store.await(t, len(backlog)+1)
	at := slices.IndexFunc(order, func(c millrace.Completion) bool { return c.Task.Priority == millrace.High })
	if at != 11 {
		t.Errorf("the task of the other pool was number %d, want 11, right after the turn that ran", at)
	}
}

func TestTheLeaseOfADeadWorkerLapses(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	dead := newLeases(newHandover(client, defaultKeyPrefix, "bulk"), defaultKeyPrefix, "bulk")
	if c, err := dead.take(t.Context(), lease{"c", dead.owner + "/1"}); err != nil || !c.ok {
		t.Fatal(c, err)
	}
	engine, _ := b.start(t, store, appendTask, pool("fast", client, millrace.High))
	b.send(t, task("c", 0, millrace.High), task("free", 0, millrace.High))
	if got := ids(store.await(t, 1)); got != "[free/high/0]" {
		t.Errorf("completed %s while the conversation was another's", got)
	}
	eventually(t, "it waits", func() bool { return testutil.ToFloat64(engine.metrics.parked) == 1 })
	server.SetTime(time.Now().Add(leaseFor + time.Second))
	store.await(t, 2)
}

func TestARunningTurnKeepsItsLease(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	p := newPace(t)
	long := task("c", 0, millrace.Normal)
	release := p.stopAt(long.ID)
	b.start(t, store, p.worker("bulk"), pool("bulk", client, millrace.Normal))
	fast, _ := b.start(t, store, p.worker("fast"), pool("fast", client, millrace.High))
	b.send(t, long)
	eventually(t, "the long turn runs", p.started(long.ID))
	b.send(t, task("c", 0, millrace.High))
	eventually(t, "the other pool waits", func() bool { return testutil.ToFloat64(fast.metrics.parked) == 1 })
	until := func() string { return server.HGet("millrace:lease:c", "until") }
	first := until()
	eventually(t, "the lease is renewed", func() bool { return until() > first })
	release()
	store.await(t, 2)
	eventually(t, "nobody has the lease", func() bool {
		return server.HGet("millrace:lease:c", "holder") == ""
	})
}

func TestATaskThatHasJournaledAStepIsNotOvertakenByAnotherPool(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	failed := make(chan struct{})
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Attempt() == 1 {
			if _, err := turn.Step(ctx, "call", nil, func(context.Context) (millrace.StepResult, error) {
				return millrace.StepResult{}, nil
			}); err != nil {
				return err
			}
			close(failed)
			return millrace.RetryAfter(500*time.Millisecond, errors.New("later"))
		}
		return appendTask(ctx, turn)
	}, func(c *Config) {
		pool("bulk", client, millrace.Batch)(c)
		c.Journal = memoryJournal{}
	})
	b.start(t, store, appendTask, pool("fast", client, millrace.High))
	b.send(t, task("c", 0, millrace.Batch))
	<-failed
	b.send(t, task("c", 0, millrace.High))
	if got, want := ids(store.await(t, 2)), "[c/batch/0 c/high/0]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

func TestWithoutRedisTurnsGoOnAfterAWhileAndAreCounted(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	engine, _ := b.start(t, store, appendTask, pool("fast", client, millrace.High))
	b.send(t, task("a", 0, millrace.High))
	store.await(t, 1)
	server.SetError("redis is out")
	b.send(t, task("a", 1, millrace.High))
	eventually(t, "it waits for Redis", func() bool { return engine.leases.failing.Load() != 0 && engine.waitingIn("a") == 1 })
	if n := testutil.ToFloat64(engine.metrics.leaseless); n != 0 {
		t.Errorf("%v turns ran without a lease at once", n)
	}
	engine.leases.failing.Store(time.Now().Add(-blindFor - time.Second).UnixNano())
	store.await(t, 2)
	if n := testutil.ToFloat64(engine.metrics.leaseless); n != 1 {
		t.Errorf("%v turns without a lease were counted, want 1", n)
	}
	server.SetError("")
	eventually(t, "Redis is noticed", func() bool { return engine.leases.failing.Load() == 0 })
	b.send(t, task("a", 2, millrace.High))
	store.await(t, 3)
	if n := testutil.ToFloat64(engine.metrics.leaseless); n != 1 {
		t.Errorf("%v turns without a lease, want none since Redis is back", n)
	}
}

func TestAfterATurnOfAnotherPoolTheConversationIsOpenedAnew(t *testing.T) {
	b, store := newBroker(t), &countingStore{memoryStore: newMemoryStore()}
	client, _ := newRedis(t)
	engine, _ := b.start(t, store, appendTask, pool("fast", client, millrace.High))
	b.start(t, store.memoryStore, appendTask, pool("bulk", client, millrace.Normal))
	for n := range 3 {
		b.send(t, task("c", n, millrace.High))
		store.await(t, n+1)
	}
	if n := store.opens.Load(); n != 1 {
		t.Errorf("opened %d times while nobody else ran, want once", n)
	}
	b.send(t, task("c", 0, millrace.Normal))
	store.await(t, 4)
	b.send(t, task("c", 3, millrace.High))
	store.await(t, 5)
	if n := store.opens.Load(); n != 2 {
		t.Errorf("opened %d times, want once more after the other pool", n)
	}
	if n := testutil.ToFloat64(engine.metrics.secondRuns); n != 0 {
		t.Errorf("%v turns ran on an old conversation", n)
	}
}

func TestATurnThatLostItsVersionIsCountedAsASecondRun(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	first := true
	engine, _ := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if first {
			first = false
			store.mu.Lock()
			c := store.convs["c"]
			c.Version++
			store.convs["c"] = c
			store.mu.Unlock()
		}
		return appendTask(ctx, turn)
	}, nil)
	b.send(t, task("c", 0, millrace.High))
	store.await(t, 1)
	if n := testutil.ToFloat64(engine.metrics.secondRuns); n != 1 {
		t.Errorf("%v second runs, want 1", n)
	}
}

func TestAPoolThatIsAloneTakesNoLeases(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	b.start(t, store, appendTask, func(c *Config) { c.Redis = client })
	b.send(t, task("c", 0, millrace.High), task("c", 0, millrace.Batch))
	store.await(t, 2)
	for _, key := range server.Keys() {
		if strings.Contains(key, "lease") {
			t.Errorf("key %s", key)
		}
	}
}

func TestASecondPoolIsNoticed(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	alone := func(name string, priorities ...millrace.Priority) func(*Config) {
		return func(c *Config) {
			pool(name, client, priorities...)(c)
			c.Split = false
		}
	}
	first, _ := b.start(t, store, appendTask, alone("first", millrace.High, millrace.Normal))
	eventually(t, "the first worker is known", func() bool {
		workers, err := Workers(t.Context(), client, "")
		return err == nil && len(workers) == 1 && len(workers[0].Partitions) == testPartitions
	})
	if first.leases.split.Load() {
		t.Error("a pool that is alone takes leases")
	}
	second, _ := b.start(t, store, appendTask, alone("second", millrace.Normal, millrace.Batch))
	eventually(t, "both take leases", func() bool { return first.leases.split.Load() && second.leases.split.Load() })
	workers, err := Workers(t.Context(), client, "")
	if err != nil || len(workers) != 2 {
		t.Fatalf("workers %+v, %v", workers, err)
	}
	if w := workers[1]; w.Pool != "second" || w.Slots != 32 || w.Free != 32 || fmt.Sprint(w.Priorities) != "[normal batch]" || w.Incarnation != second.handover.incarnation {
		t.Errorf("worker %+v", w)
	}
	first.learnPools(nil)
	if first.leases.split.Load() {
		t.Error("leases are taken although no other pool is left")
	}
}

func TestAPriorityOfTwoPoolsIsWarnedOfOnce(t *testing.T) {
	client, _ := newRedis(t)
	var log strings.Builder
	engine, err := New(Config{
		Kafka: newBroker(t).opts, Handler: millrace.HandlerFunc(appendTask), Store: newMemoryStore(), Redis: client,
		Pool: "a", Logger: logTo(&log),
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		engine.learnPools(map[string]poolInfo{"a": {}, "b": {Priorities: []millrace.Priority{millrace.High, "other"}}})
	}
	if n := strings.Count(log.String(), "serves this priority as well"); n != 1 || !strings.Contains(log.String(), `"priority":"high"`) {
		t.Errorf("%d warnings: %s", n, log.String())
	}
}

func TestAWorkerThatIsGoneLeavesTheList(t *testing.T) {
	client, server := newRedis(t)
	r := newRegistry(client, defaultKeyPrefix)
	if _, err := r.beat(t.Context(), "millrace:p:alive:i", &WorkerInfo{Incarnation: "i", Pool: "p"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if workers, err := Workers(t.Context(), client, ""); err != nil || len(workers) != 1 {
		t.Fatalf("workers %+v, %v", workers, err)
	}
	server.FastForward(aliveFor + time.Second)
	if workers, err := Workers(t.Context(), client, ""); err != nil || len(workers) != 0 {
		t.Errorf("workers %+v, %v; want none", workers, err)
	}
	if n := client.HLen(t.Context(), r.workers).Val(); n != 0 {
		t.Errorf("%d entries of workers that are gone", n)
	}
}

func logTo(w *strings.Builder) *zerolog.Logger {
	log := zerolog.New(w)
	return &log
}
