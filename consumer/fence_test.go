package consumer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// fencedStore counts what is looked up, and lets a test answer for fences.
type fencedStore struct {
	*memoryStore
	lookedUp atomic.Int32
	raise    func([]millrace.Fence) ([]int64, error)
}

func (s *fencedStore) Completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	s.lookedUp.Add(int32(len(keys)))
	return s.memoryStore.Completed(ctx, keys)
}

func (s *fencedStore) RaiseFences(ctx context.Context, fences []millrace.Fence) ([]int64, error) {
	if s.raise != nil {
		return s.raise(fences)
	}
	return s.memoryStore.RaiseFences(ctx, fences)
}

func (s *fencedStore) in(c *Config) { c.Fences = s }

func sendMany(t *testing.T, b *broker, from, to int) {
	t.Helper()
	tasks := make([]millrace.Task, 0, to-from)
	for n := from; n < to; n++ {
		tasks = append(tasks, task(fmt.Sprintf("c%d", n), 0, millrace.Normal))
	}
	b.send(t, tasks...)
}

func TestABacklogThatNobodyHasStartedIsNotLookedUp(t *testing.T) {
	b, store := newBroker(t), &fencedStore{memoryStore: newMemoryStore()}
	sendMany(t, b, 0, 50)
	b.start(t, store, appendTask, store.in)
	store.await(t, 50)
	if n := store.lookedUp.Load(); n != 0 {
		t.Errorf("%d tasks looked up, want none", n)
	}
}

func TestWhatMayHaveBeenStartedIsLookedUp(t *testing.T) {
	b, store := newBroker(t), &fencedStore{memoryStore: newMemoryStore()}
	var runs atomic.Int32
	count := func(ctx context.Context, turn *millrace.Turn) error {
		runs.Add(1)
		return appendTask(ctx, turn)
	}
	sendMany(t, b, 0, 20)
	_, stop := b.start(t, store, count, store.in)
	store.await(t, 20)
	stop()
	// Another group stands for one whose offsets have expired: it reads all again.
	sendMany(t, b, 20, 21)
	b.start(t, store, count, func(c *Config) { store.in(c); c.Pool = "again" })
	store.await(t, 21)
	if runs.Load() != 21 {
		t.Errorf("%d runs of 21 tasks", runs.Load())
	}
	if n := store.lookedUp.Load(); n < 20 {
		t.Errorf("%d tasks looked up, want the 20 that were started", n)
	}
}

// Later fences are this worker's own: they say nothing of what was there before.
func TestWithoutAFenceAllOfTheLogIsLookedUp(t *testing.T) {
	b, store := newBroker(t), &fencedStore{memoryStore: newMemoryStore()}
	var mu sync.Mutex
	raised := make(map[int32]int64)
	store.raise = func(fences []millrace.Fence) ([]int64, error) {
		mu.Lock()
		defer mu.Unlock()
		before := make([]int64, len(fences))
		for i, f := range fences {
			before[i] = math.MaxInt64
			if below, ok := raised[f.Partition]; ok {
				before[i] = below
			}
			raised[f.Partition] = f.Below
		}
		return before, nil
	}
	for n := 0; n < 200; n += 10 { // fetched one by one
		sendMany(t, b, n, n+10)
	}
	engine, err := New(Config{
		Kafka: append(b.opts, kgo.FetchMaxPartitionBytes(1)), TopicPrefix: "t.", Handler: millrace.HandlerFunc(appendTask),
		Store: store, Fences: store,
	})
	if err != nil {
		t.Fatal(err)
	}
	engine.fenceStep = 2
	runEngine(t, engine)
	store.await(t, 200)
	if n := store.lookedUp.Load(); n != 200 {
		t.Errorf("%d of 200 tasks looked up", n)
	}
}

func TestNothingStartsBeforeItsFenceIsRaised(t *testing.T) {
	b, store := newBroker(t), &fencedStore{memoryStore: newMemoryStore()}
	var tries, early atomic.Int32
	open := make(chan struct{})
	store.raise = func(fences []millrace.Fence) ([]int64, error) {
		tries.Add(1)
		select {
		case <-open:
			return store.memoryStore.RaiseFences(context.Background(), fences)
		default:
			return nil, millrace.Unavailable(errors.New("the database is out"))
		}
	}
	sendMany(t, b, 0, 10)
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		select {
		case <-open:
		default:
			early.Add(1)
		}
		return appendTask(ctx, turn)
	}, store.in)
	eventually(t, "a second try", func() bool { return tries.Load() > 1 })
	close(open)
	store.await(t, 10)
	if n := early.Load(); n != 0 {
		t.Errorf("%d tasks started before their fence was raised", n)
	}
}

func TestARepeatedTaskRunsOnce(t *testing.T) {
	b, store := newBroker(t), &fencedStore{memoryStore: newMemoryStore()}
	var runs atomic.Int32
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().Conversation == "c" {
			runs.Add(1)
		}
		return appendTask(ctx, turn)
	}, store.in)
	sendMany(t, b, 0, 1)
	store.await(t, 1) // from here on nothing is below what reading began at
	repeated := task("c", 0, millrace.Normal)
	b.send(t, repeated, task("c", 1, millrace.Normal), repeated, task("c", 2, millrace.Normal))
	store.await(t, 4)
	if n := runs.Load(); n != 3 {
		t.Errorf("%d runs of 3 tasks, one of them sent twice", n)
	}
}
