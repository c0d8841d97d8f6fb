package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// offline is an engine without Kafka: the test plays the client. It is made
// inside a synctest bubble.
type offline struct {
	*Engine
	offsets map[topicPartition]int64
}

func newOffline(t *testing.T, store Store, handler millrace.HandlerFunc, change func(*Config)) *offline {
	t.Helper()
	cfg := Config{
		Kafka: []kgo.Opt{kgo.SeedBrokers("none")}, TopicPrefix: "t.", Handler: handler, Store: store, Slots: 16,
	}
	if change != nil {
		change(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.startNoMore()
		e.awaitSlots()
	})
	return &offline{Engine: e, offsets: make(map[topicPartition]int64)}
}

// numbers names partitions of all priorities.
func (o *offline) numbers(ns ...int32) map[string][]int32 {
	m := make(map[string][]int32)
	for topic := range o.topics {
		m[topic] = slices.Clone(ns)
	}
	return m
}

func (o *offline) assign(ns ...int32) { o.onAssigned(context.Background(), nil, o.numbers(ns...)) }

func (o *offline) lose(ns ...int32) { o.onLost(context.Background(), nil, o.numbers(ns...)) }

// feed hands tasks in as if they had been fetched from a partition.
func (o *offline) feed(t *testing.T, number int32, tasks ...millrace.Task) {
	t.Helper()
	for i := range tasks {
		r, err := tasks[i].Record()
		if err != nil {
			t.Fatal(err)
		}
		tp := topicPartition{Topic("t.", tasks[i].Priority), number}
		kr := &kgo.Record{Topic: tp.topic, Partition: number, Offset: o.offsets[tp], Key: r.Key, Value: r.Value}
		o.offsets[tp]++
		for _, h := range r.Headers {
			kr.Headers = append(kr.Headers, kgo.RecordHeader(h))
		}
		o.enqueue(tp, [16]byte{}, 0, []*item{newItem(kr, [16]byte{})})
	}
}

// part returns the assignment of a partition.
func (o *offline) part(p millrace.Priority, number int32) *partition {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.parts[topicPartition{Topic("t.", p), number}]
}

// held returns the bytes that are accounted for.
func (o *offline) held() (total int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, n := range o.waiting {
		total += n
	}
	return total
}

// gate is a handler whose turns wait until the test lets them go.
type gate struct {
	mu      sync.Mutex
	started []string
	doors   map[string]chan struct{}
}

func newGate() *gate { return &gate{doors: make(map[string]chan struct{})} }

func (g *gate) door(id string) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.doors[id] == nil {
		g.doors[id] = make(chan struct{})
	}
	return g.doors[id]
}

func (g *gate) handle(ctx context.Context, turn *millrace.Turn) error {
	id := turn.Task().ID
	g.mu.Lock()
	g.started = append(g.started, id)
	g.mu.Unlock()
	select {
	case <-g.door(id):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) release(ids ...string) {
	for _, id := range ids {
		close(g.door(id))
	}
	synctest.Wait()
}

// ran returns what has started so far.
func (g *gate) ran() string {
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprint(g.started)
}

// ranInAnyOrder returns it sorted: slots that start together do so in any order.
func (g *gate) ranInAnyOrder() string {
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprint(slices.Sorted(slices.Values(g.started)))
}

func TestTimerOfADroppedLaneDoesNotOpenItsConversationToASecondTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu            sync.Mutex
			runs, running int
			second        = make(chan struct{})
		)
		o := newOffline(t, newMemoryStore(), func(ctx context.Context, _ *millrace.Turn) error {
			mu.Lock()
			runs++
			first := runs == 1
			running++
			if running > 1 {
				t.Error("two turns of one conversation at once")
			}
			mu.Unlock()
			defer func() {
				mu.Lock()
				running--
				mu.Unlock()
			}()
			if first {
				return millrace.RetryAfter(time.Second, errors.New("later"))
			}
			select {
			case <-second:
			case <-ctx.Done():
			}
			return nil
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		// The partition leaves while the lane waits for its retry, and comes back.
		o.lose(0)
		o.assign(0)
		o.offsets = make(map[topicPartition]int64)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		<-time.After(2 * time.Second)
		o.feed(t, 0, task("c", 1, millrace.Normal))
		synctest.Wait()
		close(second)
		synctest.Wait()
		if runs != 3 {
			t.Errorf("%d runs, want 3", runs)
		}
	})
}

func TestTurnThatEndsWhileItsPartitionIsRevokedIsPartOfTheLastCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		part := o.part(millrace.Normal, 0)
		synctest.Wait()
		o.takeAway(o.numbers(0))
		g.release("c/normal/0")
		o.mu.Lock()
		defer o.mu.Unlock()
		if part.tracker.next != 1 {
			t.Errorf("offset %d would be committed, want 1: the next owner reads a finished task again", part.tracker.next)
		}
	})
}

func TestRevokedPartitionIgnoresTurnsThatWouldRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs int
		release := make(chan struct{})
		o := newOffline(t, newMemoryStore(), func(context.Context, *millrace.Turn) error {
			runs++
			<-release
			return errors.New("try again")
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		part := o.part(millrace.Normal, 0)
		synctest.Wait()
		o.takeAway(o.numbers(0))
		close(release)
		<-time.After(time.Minute)
		if runs != 1 {
			t.Errorf("%d runs, want 1: its next owner runs the task", runs)
		}
		o.mu.Lock()
		next := part.tracker.next
		o.mu.Unlock()
		if next != 0 {
			t.Errorf("offset %d would be committed before the task is done", next)
		}
		if n := o.held(); n != 0 {
			t.Errorf("%d bytes still accounted for", n)
		}
	})
}

func TestNothingOfALostPartitionRunsOrIsAccountedFor(t *testing.T) {
	for _, conversation := range []string{"c", ""} {
		t.Run(fmt.Sprintf("conversation %q", conversation), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate()
				o := newOffline(t, newMemoryStore(), g.handle, func(c *Config) { c.Slots = 1 })
				o.assign(0, 1)
				o.feed(t, 1, task("other", 0, millrace.Normal))
				for n := range 5 {
					o.feed(t, 0, task(conversation, n, millrace.Normal))
				}
				synctest.Wait()
				o.lose(0)
				size := o.held()
				g.release("other/normal/0")
				if got, want := g.ran(), "[other/normal/0]"; got != want {
					t.Errorf("ran %s, want %s", got, want)
				}
				if got := o.held(); got != 0 || size == 0 {
					t.Errorf("%d bytes held after all is done, %d with one running", got, size)
				}
				o.mu.Lock()
				defer o.mu.Unlock()
				for key := range o.lanes {
					if key.partition == 0 {
						t.Errorf("lane %v is left", key)
					}
				}
			})
		})
	}
}

func TestLanesKeepTheirPlaceWhenAnotherPartitionLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, func(c *Config) { c.Slots = 1 })
		o.assign(0, 1)
		var all []string
		for n := range 8 {
			conversation := fmt.Sprintf("c%d", n)
			o.feed(t, 0, task(conversation, 0, millrace.Normal))
			all = append(all, conversation+"/normal/0")
		}
		o.feed(t, 1, task("gone", 0, millrace.Normal))
		synctest.Wait()
		o.lose(1)
		g.release(all...)
		if got := g.ran(); got != fmt.Sprint(all) {
			t.Errorf("ran %s, want %v", got, all)
		}
	})
}

func TestPartitionOfARecreatedTopicStartsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
		old := o.part(millrace.Normal, 0)
		synctest.Wait()
		o.assign(0)
		o.offsets = make(map[topicPartition]int64)
		o.feed(t, 0, task("c", 7, millrace.Normal))
		if got, want := g.ran(), "[c/normal/0 c/normal/7]"; got != want {
			t.Errorf("ran %s, want %s", got, want)
		}
		if old.ctx.Err() == nil {
			t.Error("turns of the old topic were not told to stop")
		}
		g.release("c/normal/7")
		if next := o.part(millrace.Normal, 0).tracker.next; next != 1 {
			t.Errorf("offset %d would be committed, want 1", next)
		}
	})
}

func TestSlotThatTwoLanesMayShareServesBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, func(c *Config) {
			c.Slots, c.Reserved = 3, map[millrace.Priority]int{millrace.High: 1}
		})
		o.assign(0)
		o.feed(t, 0, task("a", 0, millrace.Batch), task("b", 0, millrace.Batch), task("c", 0, millrace.Batch))
		synctest.Wait()
		// The lane of a goes on with a task that takes the reserved slot, so that the
		// slot it gives back is anybody's.
		o.feed(t, 0, task("a", 0, millrace.High))
		if got, want := g.ranInAnyOrder(), "[a/batch/0 b/batch/0]"; got != want {
			t.Fatalf("ran %s, want %s", got, want)
		}
		g.release("a/batch/0")
		if got, want := g.ranInAnyOrder(), "[a/batch/0 a/high/0 b/batch/0 c/batch/0]"; got != want {
			t.Errorf("ran %s, want %s: a slot stands idle", got, want)
		}
	})
}

func TestHandlerOfAGivenUpTaskDoesNotRunAgainWhenTheCommitIsPutOff(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		runs int
	}{
		{"attempts spent", errors.New("never"), 3},
		{"permanent", millrace.Permanent(errors.New("bad")), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemoryStore()
				outages := 0
				store.fail = func(millrace.Completion) error {
					if outages++; outages <= 4 {
						return millrace.Unavailable(errors.New("database is down"))
					}
					return nil
				}
				runs := 0
				o := newOffline(t, store, func(context.Context, *millrace.Turn) error {
					runs++
					return tt.err
				}, func(c *Config) { c.MaxAttempts = 3 })
				o.assign(0)
				o.feed(t, 0, task("c", 0, millrace.Normal))
				got := store.await(t, 1)[0]
				if runs != tt.runs || got.Attempts != tt.runs || got.DeadLetter == nil {
					t.Errorf("%d runs, dead letter %v after %d attempts; want %d runs", runs, got.DeadLetter, got.Attempts, tt.runs)
				}
			})
		})
	}
}

func TestTaskThatAnotherWorkerCompletedIsNotReportedAsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		tk := task("c", 0, millrace.Normal)
		o := newOffline(t, store, func(context.Context, *millrace.Turn) error {
			store.mu.Lock()
			defer store.mu.Unlock()
			store.completions[tk.Key()] = millrace.Completion{Task: tk, Status: millrace.StatusCompleted}
			return millrace.Permanent(errors.New("bad"))
		}, nil)
		o.assign(0)
		o.feed(t, 0, tk)
		synctest.Wait()
		if n := testutil.ToFloat64(o.metrics.deadLetters.WithLabelValues(millrace.ReasonPermanent)); n != 0 {
			t.Errorf("%v dead letters counted, the store has none", n)
		}
	})
}

func TestWorkerIsNotReadyWhileItIsOutOfItsGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffline(t, newMemoryStore(), newGate().handle, nil)
		for step, want := range []bool{false, true, false, true} {
			switch step {
			case 1, 3:
				o.assign(0)
			case 2:
				o.lose(0)
			}
			if got := o.Check(t.Context()) == nil; got != want {
				t.Errorf("step %d: ready %v, want %v", step, got, want)
			}
		}
	})
}

func TestTurnThatUsesUpItsTimeCountsAsAnAttemptWhateverItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, _ *millrace.Turn) error {
			<-ctx.Done()
			return millrace.Unavailable(fmt.Errorf("record step: %w", ctx.Err()))
		}, func(c *Config) { c.TurnTimeout, c.MaxAttempts = time.Minute, 2 })
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		<-time.After(3 * time.Minute)
		got := store.await(t, 1)[0]
		if got.DeadLetter == nil || got.DeadLetter.Reason != millrace.ReasonAttemptsExhausted || got.Attempts != 2 {
			t.Errorf("dead letter %+v after %d attempts, want attempts exhausted after 2", got.DeadLetter, got.Attempts)
		}
	})
}

func TestRecordsFetchedBeforeTheirPartitionWasTakenAwayAreLeftToItsNextOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, nil)
		o.assign(0)
		o.takeAway(o.numbers(0))
		o.feed(t, 0, task("c", 0, millrace.Normal))
		if got := g.ran(); got != "[]" {
			t.Errorf("ran %s of a partition that is being revoked", got)
		}
		o.lose(0)
		o.feed(t, 0, task("c", 1, millrace.Normal))
		if got := g.ran(); got != "[]" {
			t.Errorf("ran %s of a partition that is lost", got)
		}
	})
}

// A topic that is made anew, or later than the others, is assigned alone.
func TestLaneThatWaitsForAnEarlierOwnerOutlastsTheAssignmentOfAnotherTopic(t *testing.T) {
	client, _ := newRedis(t)
	earlier := newHandover(client, "millrace:", "default")
	if err := earlier.announce(t.Context(), map[int32][]turnName{0: {conversationName("c")}}); err != nil {
		t.Fatal(err)
	}
	store := newMemoryStore()
	o := newOffline(t, store, appendTask, func(c *Config) { c.Redis = client })
	o.assign(0)
	o.feed(t, 0, task("c", 0, millrace.Normal))
	o.onAssigned(t.Context(), &kgo.Client{}, map[string][]int32{Topic("t.", millrace.Batch): {0}})
	if n := o.waitingIn("c"); n != 1 {
		t.Fatalf("%d tasks wait for the earlier owner", n)
	}
	if err := earlier.withdraw(t.Context(), 0, conversationName("c")); err != nil {
		t.Fatal(err)
	}
	o.releaseHolds(t.Context(), false)
	store.await(t, 1)
}
