package consumer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// memoryStore commits like the real store: once per task, on the right version.
type memoryStore struct {
	mu          sync.Mutex
	convs       map[string]millrace.Conversation
	completions map[millrace.Key]millrace.Completion
	// groups are those that are journaled, journalings counts how often it was
	// written or asked.
	groups      map[millrace.Key][]millrace.Key
	journalings int
	order       []millrace.Completion
	fences      map[millrace.Fence]int64 // by their place alone
	// fail, when set, is asked before every commit.
	fail    func(millrace.Completion) error
	changed chan struct{}
}

func newMemoryStore() *memoryStore {
	return &memoryStore{
		convs:       make(map[string]millrace.Conversation),
		completions: make(map[millrace.Key]millrace.Completion),
		groups:      make(map[millrace.Key][]millrace.Key),
		fences:      make(map[millrace.Fence]int64),
		changed:     make(chan struct{}),
	}
}

func (s *memoryStore) Open(_ context.Context, task *millrace.Task) (millrace.Conversation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[task.Conversation]
	c.ID = task.Conversation
	return c, nil
}

func (s *memoryStore) Reload(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	return s.Open(ctx, task)
}

func (s *memoryStore) Completed(_ context.Context, keys []millrace.Key) (map[millrace.Key]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := make(map[millrace.Key]bool)
	for _, key := range keys {
		if _, ok := s.completions[key]; ok {
			found[key] = true
		}
	}
	return found, nil
}

func (s *memoryStore) Commit(_ context.Context, c millrace.Completion) (millrace.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(c); err != nil {
			return 0, err
		}
	}
	if _, done := s.completions[c.Task.Key()]; done {
		return millrace.AlreadyCompleted, nil
	}
	if c.Effects.Touches() {
		held := s.convs[c.Task.Conversation]
		if held.Version != c.Base.Version {
			return millrace.Conflict, nil
		}
		s.convs[c.Task.Conversation] = held.After(&c.Task, &c.Effects, c.FinishedAt)
	}
	s.completions[c.Task.Key()] = c
	s.order = append(s.order, c)
	for i := range c.Also {
		other := c.Each(i)
		if _, done := s.completions[other.Task.Key()]; !done {
			s.completions[other.Task.Key()] = other
			s.order = append(s.order, other)
		}
	}
	delete(s.groups, c.Task.Key())
	close(s.changed)
	s.changed = make(chan struct{})
	return millrace.Committed, nil
}

func (s *memoryStore) Coalesce(_ context.Context, leader millrace.Key, members []millrace.Key, anew bool) ([]millrace.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journalings++
	if held := s.groups[leader]; held != nil && !anew {
		return held, nil
	}
	delete(s.groups, leader)
	for _, key := range members {
		if _, done := s.completions[key]; !done {
			s.groups[leader] = append(s.groups[leader], key)
		}
	}
	return s.groups[leader], nil
}

func (s *memoryStore) RaiseFences(_ context.Context, fences []millrace.Fence) ([]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := make([]int64, len(fences))
	for i, f := range fences {
		place := millrace.Fence{TopicID: f.TopicID, Partition: f.Partition}
		before[i] = s.fences[place]
		s.fences[place] = max(s.fences[place], f.Below)
	}
	return before, nil
}

// fence returns how far a partition may have been started.
func (s *memoryStore) fence(topicID [16]byte, partition int32) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fences[millrace.Fence{TopicID: topicID, Partition: partition}]
}

// completed counts the completions so far.
func (s *memoryStore) completed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// completedBefore reports whether a task is among the first n completions.
func (s *memoryStore) completedBefore(id string, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.order[:n], func(c millrace.Completion) bool { return c.Task.ID == id })
}

// countingStore counts how often conversations are opened.
type countingStore struct {
	*memoryStore
	opens atomic.Int32
}

func (s *countingStore) Open(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	s.opens.Add(1)
	return s.memoryStore.Open(ctx, task)
}

// partitionsOf returns what an engine owns.
func partitionsOf(e *Engine) map[string][]int32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[string][]int32)
	for tp := range e.parts {
		out[tp.topic] = append(out[tp.topic], tp.partition)
	}
	return out
}

// await waits until n tasks are complete and returns them in commit order.
func (s *memoryStore) await(t *testing.T, n int) []millrace.Completion {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		order, changed := append([]millrace.Completion(nil), s.order...), s.changed
		s.mu.Unlock()
		if len(order) >= n {
			return order
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("%d of %d tasks complete after 30 s: %s", len(order), n, ids(order))
		}
	}
}

// broker is a fake Kafka with the priority topics.
type broker struct {
	cluster  *kfake.Cluster
	opts     []kgo.Opt
	producer *kgo.Client
}

const testPartitions = 6

func newBroker(t *testing.T) *broker {
	t.Helper()
	var topics []string
	for _, p := range millrace.DefaultPriorities() {
		topics = append(topics, Topic("t.", p))
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(testPartitions, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	b := &broker{cluster: cluster, opts: []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)}}
	b.producer, err = kgo.NewClient(append(b.opts, kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.producer.Close)
	return b
}

// send produces tasks in order and waits for their acknowledgement.
func (b *broker) send(t *testing.T, tasks ...millrace.Task) {
	t.Helper()
	records := make([]*kgo.Record, 0, len(tasks))
	for i := range tasks {
		r, err := tasks[i].Record()
		if err != nil {
			t.Fatal(err)
		}
		kr := &kgo.Record{Topic: Topic("t.", tasks[i].Priority), Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
		for _, h := range r.Headers {
			kr.Headers = append(kr.Headers, kgo.RecordHeader(h))
		}
		records = append(records, kr)
	}
	b.sendRaw(t, records...)
}

func (b *broker) sendRaw(t *testing.T, records ...*kgo.Record) {
	t.Helper()
	if err := b.producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func task(conversation string, n int, p millrace.Priority) millrace.Task {
	return millrace.Task{
		ID: fmt.Sprintf("%s/%s/%d", conversation, p, n), Conversation: conversation, Type: "chat",
		Priority: p, Payload: fmt.Appendf(nil, "%d", n), Time: time.Now(),
	}
}

// start runs an engine until stop is called or the test ends.
func (b *broker) start(t *testing.T, store Store, handler millrace.HandlerFunc, change func(*Config)) (engine *Engine, stop func()) {
	t.Helper()
	cfg := Config{
		Kafka: b.opts, TopicPrefix: "t.", Handler: handler, Store: store, Slots: 16,
		RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	engine, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return engine, runEngine(t, engine)
}

// runEngine runs an engine until stop is called or the test ends.
func runEngine(t *testing.T, engine *Engine) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- engine.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("engine: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits for a condition that only looking can tell.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("after 30 s still not: %s", what)
		}
	}
}

// waitingIn counts what waits in the lanes of a conversation.
func (e *Engine) waitingIn(conversation string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for key, l := range e.lanes {
		if key.conversation == conversation {
			for i := range l.waiting {
				for range l.waiting[i].all() {
					n++
				}
			}
		}
	}
	return n
}
