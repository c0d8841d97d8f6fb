package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

func coalescible(ns ...int) []millrace.Task {
	tasks := make([]millrace.Task, len(ns))
	for i, n := range ns {
		tasks[i] = busyTask(n, millrace.Normal, millrace.BusyCoalesce)
	}
	return tasks
}

// chorus appends the payloads of all that a turn answers, keeps account of them,
// and does then what the test says.
type chorus struct {
	mu    sync.Mutex
	turns []string
	then  func(ctx context.Context, turn *millrace.Turn) error
}

func (c *chorus) handle(ctx context.Context, turn *millrace.Turn) error {
	said := string(turn.Task().Payload)
	for _, other := range turn.Coalesced() {
		said += " " + string(other.Payload)
	}
	c.mu.Lock()
	c.turns = append(c.turns, said)
	c.mu.Unlock()
	if err := errors.Join(turn.Append(millrace.Message{Role: millrace.RoleUser, Content: said}), turn.Result(said)); err != nil {
		return err
	}
	if c.then != nil {
		return c.then(ctx, turn)
	}
	return nil
}

func (c *chorus) ran() string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("%q", c.turns)
}

// inherit hands tasks in as if they had been in the log when the worker began to
// read it, from an offset on.
func (o *offline) inherit(t *testing.T, offset int64, tasks ...millrace.Task) {
	t.Helper()
	tp := topicPartition{Topic("t.", millrace.Normal), 0}
	o.offsets[tp] = offset
	items := make([]*item, 0, len(tasks))
	for i := range tasks {
		r, err := tasks[i].Record()
		if err != nil {
			t.Fatal(err)
		}
		kr := &kgo.Record{Topic: tp.topic, Offset: o.offsets[tp], Key: r.Key, Value: r.Value}
		o.offsets[tp]++
		for _, h := range r.Headers {
			kr.Headers = append(kr.Headers, kgo.RecordHeader(h))
		}
		items = append(items, newItem(kr, [16]byte{}))
	}
	o.enqueue(tp, [16]byte{}, 1000, items)
	synctest.Wait()
}

// burst hands tasks in of which the first runs when the others come.
func (o *offline) burst(t *testing.T, tasks ...millrace.Task) {
	t.Helper()
	o.feed(t, 0, tasks[0])
	synctest.Wait()
	o.feed(t, 0, tasks[1:]...)
	synctest.Wait()
}

func (o *offline) lookingUp(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() { o.lookUpLoop(ctx) })
	t.Cleanup(func() {
		cancel()
		loop.Wait()
	})
}

// settled checks that nothing is left of what was handed in.
func (o *offline) settled(t *testing.T, next int64) {
	t.Helper()
	synctest.Wait()
	if got := o.part(millrace.Normal, 0).tracker.next; got != next {
		t.Errorf("offset %d is the lowest that is not done, want %d", got, next)
	}
	if o.held() != 0 || o.waitingIn("c") != 0 {
		t.Errorf("%d bytes and %d items are left", o.held(), o.waitingIn("c"))
	}
}

// A conversation that is busy with task 0 until the test lets it go.
func busyFirst(release <-chan struct{}) func(context.Context, *millrace.Turn) error {
	return func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().ID != "c/normal/0" {
			return nil
		}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func TestCoalescibleTasksThatWaitGetOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		c := &chorus{then: busyFirst(release)}
		o := newOffline(t, store, c.handle, nil)
		o.assign(0)
		o.burst(t, coalescible(0, 1, 2, 3, 4)...)
		if got := c.ran(); got != `["0"]` || store.journalings != 0 {
			t.Errorf("ran %s with %d looks into the journal: a task alone is alone and costs none", got, store.journalings)
		}
		close(release)
		all := store.await(t, 5)
		if got := c.ran(); got != `["0" "1 2 3 4"]` {
			t.Errorf("ran %s", got)
		}
		if store.journalings != 1 {
			t.Errorf("%d journalings, want one for the group", store.journalings)
		}
		for _, done := range all[1:] {
			if done.Status != millrace.StatusCompleted || string(done.Effects.Result) != `"1 2 3 4"` || done.Attempts != 1 {
				t.Errorf("%s: %s, result %s after %d attempts", done.Task.ID, done.Status, done.Effects.Result, done.Attempts)
			}
		}
		if conv := store.convs["c"]; conv.Version != 2 || conv.Length != 2 {
			t.Errorf("version %d with %d messages, want 2 and 2", conv.Version, conv.Length)
		}
		if n := testutil.ToFloat64(o.metrics.busy.WithLabelValues("coalesced")); n != 3 {
			t.Errorf("%v tasks counted as coalesced", n)
		}
		o.settled(t, 5)
	})
}

func TestOnlyNeighboursThatAreAlikeAreCoalesced(t *testing.T) {
	change := func(n int, change func(*millrace.Task)) millrace.Task {
		task := coalescible(n)[0]
		change(&task)
		return task
	}
	deadline := time.Now().Add(24 * 365 * 100 * time.Hour)
	for _, tt := range []struct {
		name  string
		tasks []millrace.Task
		ran   string
	}{
		{"queued between", append(coalescible(1, 2), task("c", 3, millrace.Normal), coalescible(4)[0], coalescible(5)[0]), `["0" "1 2" "3" "4 5"]`},
		{"other type", append(coalescible(1, 2), change(3, func(t *millrace.Task) { t.Type = "other" })), `["0" "1 2" "3"]`},
		{"other tenant", append(coalescible(1, 2), change(3, func(t *millrace.Task) { t.Tenant = "other" })), `["0" "1 2" "3"]`},
		{"other attempts", append(coalescible(1, 2), change(3, func(t *millrace.Task) { t.MaxAttempts = 2 })), `["0" "1 2" "3"]`},
		{"other deadline", append(coalescible(1, 2), change(3, func(t *millrace.Task) { t.Deadline = deadline })), `["0" "1 2" "3"]`},
		{"other priority", append(coalescible(1, 2), change(3, func(t *millrace.Task) { t.Priority = millrace.High })), `["0" "3" "1 2"]`},
		{"repeated", coalescible(1, 2, 2, 3), `["0" "1 2" "3"]`},
		{"too large together", []millrace.Task{
			change(1, func(t *millrace.Task) { t.Attributes = map[string]string{"a": "b"} }),
			change(2, func(t *millrace.Task) { t.Payload = append([]byte("2"), make([]byte, maxGroupBytes)...) }),
		}, fmt.Sprintf("%q", []string{"0", "1", "2" + string(make([]byte, maxGroupBytes))})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, release := newMemoryStore(), make(chan struct{})
				c := &chorus{then: busyFirst(release)}
				o := newOffline(t, store, c.handle, nil)
				o.assign(0)
				o.burst(t, append(coalescible(0), tt.tasks...)...)
				close(release)
				if got := c.ran(); got != tt.ran {
					t.Errorf("ran %.200s, want %.200s", got, tt.ran)
				}
				if o.held() != 0 {
					t.Errorf("%d bytes are left", o.held())
				}
			})
		})
	}
}

func TestATurnAnswersAHundredTasksAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		var sizes []int
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			sizes = append(sizes, 1+len(turn.Coalesced()))
			return busyFirst(release)(ctx, turn)
		}, nil)
		o.assign(0)
		for n := range 151 {
			o.feed(t, 0, coalescible(n)...)
			synctest.Wait()
		}
		close(release)
		store.await(t, 151)
		if got := fmt.Sprint(sizes); got != "[1 100 50]" {
			t.Errorf("turns of %s tasks", got)
		}
		o.settled(t, 151)
	})
}

// The worker dies between the journaling and the commit. Its heir finds another
// task in the log, and reads it along with the others or all but the first later.
func TestTheNextOwnerFormsTheSameGroup(t *testing.T) {
	for _, tt := range []struct {
		name     string
		inherits func(t *testing.T, o *offline)
		ran      string
	}{
		{"all at once", func(t *testing.T, o *offline) { o.inherit(t, 1, coalescible(1, 2, 3, 4, 5)...) }, `["1 2 3 4" "5"]`},
		{"bit by bit", func(t *testing.T, o *offline) {
			o.inherit(t, 1, coalescible(1, 2)...)
			<-time.After(3 * time.Second)
			o.inherit(t, 3, coalescible(3)...)
			<-time.After(3 * time.Second)
			o.inherit(t, 4, coalescible(4, 5)...)
		}, `["1 2 3 4" "5"]`},
		{"the first alone", func(t *testing.T, o *offline) {
			o.inherit(t, 1, coalescible(1)...)
			<-time.After(time.Second)
			o.inherit(t, 2, coalescible(2, 3, 4, 5)...)
		}, `["1 2 3 4" "5"]`},
		{"the rest too late", func(t *testing.T, o *offline) {
			o.inherit(t, 1, coalescible(1, 2)...)
			<-time.After(time.Minute)
			o.inherit(t, 3, coalescible(3, 4, 5)...)
		}, `["1 2" "3 4 5"]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, release := newMemoryStore(), make(chan struct{})
				c := &chorus{then: func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().ID == "c/normal/1" {
						<-ctx.Done()
						return ctx.Err()
					}
					return busyFirst(release)(ctx, turn)
				}}
				o := newOffline(t, store, c.handle, nil)
				o.assign(0)
				o.burst(t, coalescible(0, 1, 2, 3, 4)...)
				close(release)
				if got := c.ran(); got != `["0" "1 2 3 4"]` {
					t.Fatalf("ran %s", got)
				}
				o.lose(0)
				synctest.Wait()
				if o.held() != 0 || len(store.await(t, 1)) != 1 {
					t.Fatalf("%d bytes are left of the lost partition, ended %s", o.held(), ends(store.await(t, 1)))
				}

				heir := &chorus{}
				h := newOffline(t, store, heir.handle, nil)
				h.lookingUp(t)
				h.assign(0)
				tt.inherits(t, h)
				store.await(t, 6)
				if got := heir.ran(); got != tt.ran {
					t.Errorf("the heir ran %s, want %s", got, tt.ran)
				}
				h.settled(t, 6)
			})
		})
	}
}

// Of what the journal names, one task was cancelled before the heir read it.
func TestAGroupThatHasLostAMemberIsFormedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		tasks := coalescible(1, 2, 3)
		if _, err := store.Coalesce(t.Context(), tasks[0].Key(), []millrace.Key{tasks[1].Key(), tasks[2].Key()}, false); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Commit(t.Context(), millrace.Completion{Task: tasks[1], Status: millrace.StatusCancelled}); err != nil {
			t.Fatal(err)
		}
		c := &chorus{}
		o := newOffline(t, store, c.handle, nil)
		o.lookingUp(t)
		o.assign(0)
		began := time.Now()
		o.inherit(t, 1, tasks...)
		if got := c.ran(); got != `["1 3"]` || time.Since(began) > 0 {
			t.Errorf("ran %s after %s", got, time.Since(began))
		}
		if got := ends(store.await(t, 3)); got != "[c/normal/2:cancelled c/normal/1:completed c/normal/3:completed]" {
			t.Errorf("ended %s", got)
		}
		o.settled(t, 4)
	})
}

func TestCancelledMembers(t *testing.T) {
	cancel := func(t *testing.T, store *memoryStore, o *offline, task millrace.Task) {
		t.Helper()
		if _, err := store.Commit(t.Context(), millrace.Completion{Task: task, Status: millrace.StatusCancelled}); err != nil {
			t.Fatal(err)
		}
		o.hear(cancelOf(task))
		synctest.Wait()
	}
	t.Run("before the turn", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store, release := newMemoryStore(), make(chan struct{})
			c := &chorus{then: busyFirst(release)}
			o := newOffline(t, store, c.handle, nil)
			o.assign(0)
			tasks := coalescible(0, 1, 2, 3)
			o.burst(t, tasks...)
			cancel(t, store, o, tasks[2])
			close(release)
			if got := ends(store.await(t, 4)); got != "[c/normal/2:cancelled c/normal/0:completed c/normal/1:completed c/normal/3:completed]" {
				t.Errorf("ended %s", got)
			}
			if got := c.ran(); got != `["0" "1 3"]` {
				t.Errorf("ran %s", got)
			}
			o.settled(t, 4)
		})
	})
	for which, want := range map[int]struct{ ran, ends string }{
		// The turn goes on: what it says to the others stands.
		2: {`["0" "1 2 3"]`, "[c/normal/0:completed c/normal/2:cancelled c/normal/1:completed c/normal/3:completed]"},
		// The turn was the leader's: the others get one of their own.
		1: {`["0" "1 2 3" "2 3"]`, "[c/normal/0:completed c/normal/1:cancelled c/normal/2:completed c/normal/3:completed]"},
	} {
		t.Run(fmt.Sprintf("%d during the turn", which), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, release := newMemoryStore(), make(chan struct{})
				c := &chorus{then: func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().ID != "c/normal/1" {
						return nil
					}
					return busyFirst(release)(ctx, millrace.NewTurn(millrace.TurnConfig{Task: coalescible(0)[0]}))
				}}
				o := newOffline(t, store, c.handle, nil)
				o.hearing(t)
				o.assign(0)
				tasks := coalescible(0, 1, 2, 3)
				gate := make(chan struct{})
				first := c.then
				c.then = func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().ID == "c/normal/0" {
						<-gate
					}
					return first(ctx, turn)
				}
				o.burst(t, tasks...)
				close(gate)
				synctest.Wait()
				cancel(t, store, o, tasks[which])
				close(release)
				if got := ends(store.await(t, 4)); got != want.ends {
					t.Errorf("ended %s", got)
				}
				if got := c.ran(); got != want.ran {
					t.Errorf("ran %s", got)
				}
				o.settled(t, 4)
			})
		})
	}
}

func TestARetryKeepsTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		c := &chorus{then: func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/1" && turn.Attempt() < 3 {
				return millrace.RetryAfter(time.Second, errors.New("later"))
			}
			return busyFirst(release)(ctx, turn)
		}}
		o := newOffline(t, store, c.handle, nil)
		o.assign(0)
		o.burst(t, coalescible(0, 1, 2)...)
		close(release)
		synctest.Wait()
		if x := o.Explain("c/normal/2", nil); x.TaskID != "c/normal/2" || x.Offset != 2 || x.Attempt != 1 || x.State != WaitingForRetry {
			t.Errorf("a member that waits for the next attempt of its group: %+v", x)
		}
		o.feed(t, 0, coalescible(3)...)
		all := store.await(t, 4)
		if got := c.ran(); got != `["0" "1 2" "1 2" "1 2" "3"]` {
			t.Errorf("ran %s", got)
		}
		if all[1].Attempts != 3 || all[2].Attempts != 3 || all[3].Attempts != 1 || store.journalings != 1 {
			t.Errorf("attempts of %s: %d, %d, %d; %d journalings", ends(all), all[1].Attempts, all[2].Attempts, all[3].Attempts, store.journalings)
		}
		o.settled(t, 4)
	})
}

func TestAConflictKeepsTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		moved := false
		c := &chorus{then: func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/1" && !moved {
				moved = true
				store.mu.Lock()
				conv := store.convs["c"]
				conv.Version++
				store.convs["c"] = conv
				store.mu.Unlock()
			}
			return busyFirst(release)(ctx, turn)
		}}
		o := newOffline(t, store, c.handle, nil)
		o.assign(0)
		o.burst(t, coalescible(0, 1, 2)...)
		close(release)
		if got := ends(store.await(t, 3)); got != "[c/normal/0:completed c/normal/1:completed c/normal/2:completed]" {
			t.Errorf("ended %s", got)
		}
		if got := c.ran(); got != `["0" "1 2" "1 2"]` || store.journalings != 1 {
			t.Errorf("ran %s with %d journalings", got, store.journalings)
		}
		o.settled(t, 3)
	})
}

func TestADeadLetterOfAGroupIsOneForEachOfItsTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		c := &chorus{then: func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/1" {
				return millrace.Permanent(errors.New("no"))
			}
			return busyFirst(release)(ctx, turn)
		}}
		o := newOffline(t, store, c.handle, nil)
		o.assign(0)
		o.burst(t, coalescible(0, 1, 2, 3)...)
		close(release)
		all := store.await(t, 4)
		if got := ends(all); got != "[c/normal/0:completed c/normal/1:failed c/normal/2:failed c/normal/3:failed]" {
			t.Fatalf("ended %s", got)
		}
		for i, done := range all[1:] {
			d := done.DeadLetter
			if d == nil || d.Reason != millrace.ReasonPermanent || string(d.Record.Value) != fmt.Sprint(i+1) || d.Record.Offset != int64(i+1) {
				t.Errorf("%s: dead letter %+v", done.Task.ID, d)
			}
		}
		o.settled(t, 4)
	})
}

func TestAnInterruptEndsAllThatATurnAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		c := &chorus{then: func(ctx context.Context, turn *millrace.Turn) error {
			if turn.Task().ID == "c/normal/1" {
				<-ctx.Done()
				return ctx.Err()
			}
			return busyFirst(release)(ctx, turn)
		}}
		o := newOffline(t, store, c.handle, nil)
		o.hearing(t)
		o.assign(0)
		o.burst(t, coalescible(0, 1, 2)...)
		close(release)
		synctest.Wait()
		// A repeat of what runs must not be taken for another task.
		o.feed(t, 0, coalescible(2)...)
		o.feed(t, 0, busyTask(3, millrace.Normal, millrace.BusyInterrupt))
		if got := ends(store.await(t, 4)); got != "[c/normal/0:completed c/normal/1:cancelled c/normal/2:cancelled c/normal/3:completed]" {
			t.Errorf("ended %s", got)
		}
		if got := c.ran(); got != `["0" "1 2" "3"]` {
			t.Errorf("ran %s", got)
		}
		o.settled(t, 5)
	})
}

// The commit's outcome is unknown, and it has committed.
func TestAGroupThatHasCommittedAfterAllIsRecognised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		c := &chorus{then: busyFirst(release)}
		lost := &lossyStore{memoryStore: store, task: "c/normal/1"}
		o := newOffline(t, lost, c.handle, nil)
		o.assign(0)
		o.burst(t, coalescible(0, 1, 2, 3)...)
		close(release)
		store.await(t, 4)
		<-time.After(time.Minute)
		if got := c.ran(); got != `["0" "1 2 3"]` {
			t.Errorf("ran %s", got)
		}
		o.settled(t, 4)
	})
}

// lossyStore loses the answer to the commit of a task.
type lossyStore struct {
	*memoryStore
	task string
}

func (s *lossyStore) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	outcome, err := s.memoryStore.Commit(ctx, c)
	if c.Task.ID == s.task && err == nil {
		return 0, millrace.Unavailable(errors.New("connection lost"))
	}
	return outcome, err
}

// The partition goes while the group is journaled. What is then left out of the
// group must not come back to the lane: another worker has it.
func TestAMemberThatIsReleasedAfterItsPartitionIsLostGoesWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, release := newMemoryStore(), make(chan struct{})
		c := &chorus{then: busyFirst(release)}
		slow := &slowJournal{memoryStore: store}
		o := newOffline(t, slow, c.handle, nil)
		o.assign(0)
		tasks := coalescible(0, 1, 2, 3)
		o.burst(t, tasks...)
		if _, err := store.Commit(t.Context(), millrace.Completion{Task: tasks[2], Status: millrace.StatusCancelled}); err != nil {
			t.Fatal(err)
		}
		slow.meanwhile = func() { o.lose(0) }
		close(release)
		synctest.Wait()
		if o.held() != 0 || o.waitingIn("c") != 0 {
			t.Errorf("%d bytes and %d items are left of the lost partition", o.held(), o.waitingIn("c"))
		}
		if got := ends(store.await(t, 2)); got != "[c/normal/2:cancelled c/normal/0:completed]" {
			t.Errorf("ended %s", got)
		}
	})
}

// slowJournal has something happen before its answer arrives.
type slowJournal struct {
	*memoryStore
	meanwhile func()
}

func (s *slowJournal) Coalesce(ctx context.Context, leader millrace.Key, members []millrace.Key, anew bool) ([]millrace.Key, error) {
	group, err := s.memoryStore.Coalesce(ctx, leader, members, anew)
	s.meanwhile()
	return group, err
}

// A worker that has lost its partition unnoticed has journaled steps for a group,
// of a task that another one takes for new.
func TestATurnThatMeetsStepsOfAGroupTakesTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		tasks := coalescible(1, 2)
		c := &chorus{then: func(_ context.Context, turn *millrace.Turn) error {
			if len(turn.Coalesced()) == 0 {
				return millrace.Permanent(&millrace.StepMismatchError{Step: "llm"})
			}
			return nil
		}}
		if _, err := store.Coalesce(t.Context(), tasks[0].Key(), []millrace.Key{tasks[1].Key()}, false); err != nil {
			t.Fatal(err)
		}
		o := newOffline(t, store, c.handle, nil)
		o.assign(0)
		o.feed(t, 0, tasks[0])
		synctest.Wait()
		o.feed(t, 0, tasks[1])
		if got := ends(store.await(t, 2)); got != "[c/normal/1:completed c/normal/2:completed]" {
			t.Errorf("ended %s", got)
		}
		if got := c.ran(); got != `["1" "1 2"]` {
			t.Errorf("ran %s", got)
		}
	})
}
