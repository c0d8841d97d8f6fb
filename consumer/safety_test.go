package consumer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// memoryJournal remembers nothing: it only makes a turn journal.
type memoryJournal struct{}

func (memoryJournal) Begin(context.Context, millrace.Step) (millrace.StepResult, bool, error) {
	return millrace.StepResult{}, false, nil
}

func (memoryJournal) Finish(context.Context, millrace.Step, millrace.StepResult) error { return nil }

func TestTurnThatHasJournaledAStepIsNotOvertakenWhileItBacksOff(t *testing.T) {
	for _, tt := range []struct {
		name  string
		steps bool
		want  string
	}{
		{"with a step", true, "[c/batch/0 c/high/0]"},
		{"without", false, "[c/high/0 c/batch/0]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newMemoryStore()
				o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().Priority == millrace.Batch && turn.Attempt() == 1 {
						if tt.steps {
							if _, err := turn.Step(ctx, "call", nil, func(context.Context) (millrace.StepResult, error) {
								return millrace.StepResult{}, nil
							}); err != nil {
								return err
							}
						}
						return millrace.RetryAfter(time.Second, errors.New("later"))
					}
					return appendTask(ctx, turn)
				}, func(c *Config) { c.Journal = memoryJournal{} })
				o.assign(0)
				o.feed(t, 0, task("c", 0, millrace.Batch))
				synctest.Wait()
				o.feed(t, 0, task("c", 0, millrace.High))
				if got := ids(store.await(t, 2)); got != tt.want {
					t.Errorf("order %s, want %s", got, tt.want)
				}
			})
		})
	}
}

func TestJournaledTaskOfALostPartitionIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		o := newOffline(t, newMemoryStore(), func(ctx context.Context, turn *millrace.Turn) error {
			runs++
			if _, err := turn.Step(ctx, "call", nil, func(context.Context) (millrace.StepResult, error) {
				return millrace.StepResult{}, nil
			}); err != nil {
				return err
			}
			return millrace.RetryAfter(time.Second, errors.New("later"))
		}, func(c *Config) { c.Journal = memoryJournal{} })
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.lose(0)
		<-time.After(time.Minute)
		if runs != 1 || o.held() != 0 {
			t.Errorf("%d runs and %d bytes held, want 1 and 0", runs, o.held())
		}
	})
}

func TestRedrivenTaskIsLookedUpWhereverItLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, store := newGate(), newMemoryStore()
		again := task("c", 0, millrace.Normal)
		again.Redrive = 1
		store.completions[again.Key()] = millrace.Completion{Task: again}
		o := newOffline(t, store, g.handle, nil)
		o.assign(0)
		o.feed(t, 0, again)
		if got := g.ran(); got != "[]" {
			t.Errorf("ran %s, which is complete", got)
		}
	})
}

// forgetfulStore commits, but says the first time that it does not know.
type forgetfulStore struct {
	*memoryStore
	asked atomic.Int32
	opens atomic.Int32
}

func (s *forgetfulStore) Open(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	s.opens.Add(1)
	return s.memoryStore.Open(ctx, task)
}

func (s *forgetfulStore) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	outcome, err := s.memoryStore.Commit(ctx, c)
	if s.asked.Add(1) == 1 {
		return 0, millrace.Unavailable(errors.New("connection lost"))
	}
	return outcome, err
}

func TestTurnAfterACommitOfUnknownOutcomeRunsOnTheConversationAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &forgetfulStore{memoryStore: newMemoryStore()}
		runs := 0
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			runs++
			return appendTask(ctx, turn)
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal), task("c", 2, millrace.Normal))
		store.await(t, 3)
		if runs != 3 {
			t.Errorf("%d runs of 3 tasks", runs)
		}
		// The first opens, the second has to again, the third goes on from the second.
		if n := store.opens.Load(); n != 2 {
			t.Errorf("the conversation was opened %d times, want 2", n)
		}
	})
}

func TestLostPartitionsStopTheirTurnsAndLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		told := false
		release := make(chan struct{})
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			<-ctx.Done()
			told = true
			<-release
			return appendTask(context.WithoutCancel(ctx), turn) // as if it had not noticed
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.lose(0)
		synctest.Wait()
		if !told {
			t.Error("the turn was not told to stop")
		}
		close(release)
		synctest.Wait()
		if len(store.order) != 0 {
			t.Errorf("a turn of a lost partition was committed: %v", ids(store.order))
		}
	})
}

func TestLaneOfAPartitionThatCameBackReadsItsConversationAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		var versions []int64
		release := make(chan struct{})
		o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
			versions = append(versions, turn.Version())
			if len(versions) == 1 {
				<-release // ignores that its partition has gone
			}
			return appendTask(ctx, turn)
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		o.lose(0)
		store.mu.Lock()
		store.convs["c"] = millrace.Conversation{ID: "c", Version: 7} // the next owner's turns
		store.mu.Unlock()
		o.assign(0)
		o.feed(t, 0, task("c", 1, millrace.Normal))
		synctest.Wait()
		if len(versions) != 1 {
			t.Fatal("two turns of one conversation at once")
		}
		close(release)
		synctest.Wait()
		if len(versions) != 2 || versions[1] != 7 {
			t.Errorf("turns ran on versions %v, want 0 and 7", versions)
		}
	})
}

func TestHandlerIsToldOfTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(ctx context.Context, _ *millrace.Turn) error {
			<-ctx.Done()
			return ctx.Err()
		}, nil)
		o.assign(0)
		late := task("c", 0, millrace.Normal)
		late.Deadline = time.Now().Add(5 * time.Second)
		o.feed(t, 0, late)
		got := store.await(t, 1)[0]
		if got.DeadLetter == nil || got.DeadLetter.Reason != millrace.ReasonDeadlineExceeded || got.Attempts != 1 {
			t.Errorf("dead letter %+v after %d attempts, want deadline exceeded after 1", got.DeadLetter, got.Attempts)
		}
	})
}

func TestPartitionsAreNotGivenUpWhileACommitIsUnderWay(t *testing.T) {
	o := newOffline(t, newMemoryStore(), newGate().handle, nil)
	for name, giveUp := range map[string]func(){
		"lost": func() { o.lose(0) },
		// Nothing has been read, so there is nothing to commit.
		"revoked": func() { o.onRevoked(context.Background(), nil, o.numbers(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			o.assign(0)
			o.commitMu.lock()
			done := make(chan struct{})
			go func() {
				giveUp()
				close(done)
			}()
			part := o.part(millrace.Normal, 0)
			eventually(t, "the partition is taken away", func() bool {
				o.mu.Lock()
				defer o.mu.Unlock()
				return part.revoked
			})
			select {
			case <-done:
				t.Error("the next owner may begin while this worker still commits")
			case <-time.After(30 * time.Millisecond):
			}
			o.commitMu.unlock()
			<-done
		})
	}
}

// sendTo produces bare records to one partition of a priority.
func (b *broker) sendTo(t *testing.T, p millrace.Priority, partition int32, keys ...string) {
	t.Helper()
	producer, err := kgo.NewClient(append(b.opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, key := range keys {
		r := &kgo.Record{Topic: Topic("t.", p), Partition: partition, Key: []byte(key), Value: []byte("x")}
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// committed returns what the group has committed of a partition.
func (b *broker) committed(t *testing.T, p millrace.Priority, partition int32) (offset int64, metadata string) {
	t.Helper()
	offsets, err := kadm.NewClient(b.producer).FetchOffsets(t.Context(), Group("t.", "default"))
	if errors.Is(err, kerr.GroupIDNotFound) {
		return -1, "" // nobody has joined yet
	}
	if err != nil {
		t.Fatal(err)
	}
	o, ok := offsets.Lookup(Topic("t.", p), partition)
	if !ok {
		return -1, ""
	}
	return o.At, o.Metadata
}

func TestOffsetsAreCommittedWhileTurnsGoOn(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	blocked := make(chan struct{})
	b.sendTo(t, millrace.Normal, 0, "a", "b", "slow", "d")
	b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().Conversation == "slow" {
			select {
			case <-blocked:
			case <-ctx.Done():
			}
		}
		return appendTask(ctx, turn)
	}, nil)
	var metadata string
	eventually(t, "all before the slow task is committed", func() bool {
		var offset int64
		offset, metadata = b.committed(t, millrace.Normal, 0)
		return offset == 2 && metadata != ""
	})
	if got, err := decodeMetadata(2, metadata); err != nil || fmt.Sprint(got) != "[{3 4}]" {
		t.Errorf("metadata %q says that %v are done, %v; want the task behind the slow one", metadata, got, err)
	}
	store.await(t, 3)
	close(blocked)
	eventually(t, "all is committed", func() bool {
		offset, _ := b.committed(t, millrace.Normal, 0)
		return offset == 4
	})
}

func TestTurnThatEndsWithinTheGraceIsNotReadByTheNextOwner(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	const moving = testPartitions - 1 // the last one is the first that moves
	release := make(chan struct{})
	var runs atomic.Int32
	handler := func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().Conversation == "slow" {
			runs.Add(1)
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return appendTask(ctx, turn)
	}
	patient := func(c *Config) { c.RevokeGrace = 1900 * time.Millisecond }
	first, _ := b.start(t, store, handler, patient)
	b.sendTo(t, millrace.Normal, moving, "slow")
	eventually(t, "the slow turn runs", func() bool { return runs.Load() == 1 })
	tp := topicPartition{Topic("t.", millrace.Normal), moving}
	second, _ := b.start(t, store, handler, patient)
	eventually(t, "the partition is taken away", func() bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		p := first.parts[tp]
		return p != nil && p.revoked
	})
	close(release)
	b.sendTo(t, millrace.Normal, moving, "next")
	store.await(t, 2)
	if n := testutil.ToFloat64(second.metrics.redeliveries); n != 0 || runs.Load() != 1 {
		t.Errorf("%d runs, and %v tasks read again that were done", runs.Load(), n)
	}
}

func TestRecordsOfAbortedTransactionsAreNoTasks(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	producer, err := kgo.NewClient(append(b.opts, kgo.TransactionalID("tx"))...)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		key := map[kgo.TransactionEndTry]string{kgo.TryAbort: "aborted", kgo.TryCommit: "committed"}[end]
		r := &kgo.Record{Topic: Topic("t.", millrace.Normal), Key: []byte(key), Value: []byte("x")}
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	b.start(t, store, appendTask, nil)
	b.sendTo(t, millrace.Normal, 0, "last")
	for _, c := range store.await(t, 2) {
		if c.Task.Conversation == "aborted" {
			t.Error("a record of an aborted transaction ran")
		}
	}
}

func TestGroupBehindTheStartOfTheLogGoesOnAtItsStart(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	b.sendTo(t, millrace.Normal, 0, "a")
	_, stop := b.start(t, store, appendTask, nil)
	store.await(t, 1)
	stop()
	b.sendTo(t, millrace.Normal, 0, "expired", "kept")
	var before kadm.Offsets
	before.Add(kadm.Offset{Topic: Topic("t.", millrace.Normal), Partition: 0, At: 2})
	if _, err := kadm.NewClient(b.producer).DeleteRecords(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	b.start(t, store, appendTask, nil)
	if got := store.await(t, 2)[1].Task.Conversation; got != "kept" {
		t.Errorf("ran the task of %s, want kept", got)
	}
}

func TestDrainingStartsNothingAndGivesRunningTurnsTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, func(c *Config) { c.Slots, c.DrainTimeout = 2, 10*time.Second })
		o.assign(0)
		o.feed(t, 0, task("a", 0, millrace.Normal), task("b", 0, millrace.Normal), task("a", 1, millrace.Normal), task("c", 0, millrace.Normal))
		synctest.Wait()
		drained := make(chan struct{})
		go func() {
			o.startNoMore()
			o.awaitSlots()
			close(drained)
		}()
		synctest.Wait()
		o.feed(t, 0, task("d", 0, millrace.High)) // a draining worker goes on polling
		<-time.After(9 * time.Second)
		g.release("a/normal/0")
		if got, want := g.ranInAnyOrder(), "[a/normal/0 b/normal/0]"; got != want {
			t.Errorf("ran %s, want %s", got, want)
		}
		part := o.part(millrace.Normal, 0)
		if part.ctx.Err() != nil {
			t.Error("turns were canceled before the drain limit")
		}
		o.mu.Lock()
		next := part.tracker.next
		o.mu.Unlock()
		if next != 1 {
			t.Errorf("offset %d would be committed, want 1: what ends while draining counts", next)
		}
		<-drained // the turn of b ends with its context at the limit
		if part.ctx.Err() == nil {
			t.Error("turns go on after the drain limit")
		}
	})
}

func TestDrainingWorkerGoesOnPolling(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	started, release := make(chan struct{}), make(chan struct{})
	b.send(t, task("c", 0, millrace.Normal))
	engine, stop := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		close(started)
		<-release
		return appendTask(ctx, turn)
	}, nil)
	<-started
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	eventually(t, "it drains", func() bool {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		return engine.draining
	})
	if err := engine.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "draining") {
		t.Errorf("a draining worker is ready: %v", err)
	}
	for range 2 { // the poll under way does not count
		last := engine.pulses.poll.last.Load()
		eventually(t, "it polls", func() bool { return engine.pulses.poll.last.Load() > last })
	}
	close(release)
	<-stopped
	store.await(t, 1)
}

// refeed hands a task in that was in the log when its partition was assigned.
func (o *offline) refeed(t *testing.T, number int32, tk millrace.Task) {
	t.Helper()
	r, err := tk.Record()
	if err != nil {
		t.Fatal(err)
	}
	kr := &kgo.Record{Topic: Topic("t.", tk.Priority), Partition: number, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		kr.Headers = append(kr.Headers, kgo.RecordHeader(h))
	}
	o.enqueue(topicPartition{kr.Topic, number}, [16]byte{}, 1, []*item{newItem(kr, [16]byte{})})
}

// The partition leaves and comes back while a turn that was handed over runs here.
// No hold keeps its task from running again: it is this worker's own.
func TestTurnThatOutlivesItsAssignmentIsNotRunAgain(t *testing.T) {
	for _, conversation := range []string{"c", ""} {
		t.Run("conversation "+conversation, func(t *testing.T) {
			client, _ := newRedis(t)
			p, tk := newPace(t), task(conversation, 0, millrace.Normal)
			release := p.stopAt(tk.ID)
			o := newOffline(t, newMemoryStore(), p.worker("a"), func(c *Config) { c.Redis = client })
			o.sendCommits = func(context.Context, *kgo.Client, map[topicPartition]offsetCommit) error { return nil }
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				o.lookUpLoop(ctx)
			}()
			defer func() { cancel(); <-ended }()

			o.assign(0)
			o.refeed(t, 0, tk)
			eventually(t, "it runs", p.started(tk.ID))
			o.onRevoked(t.Context(), nil, o.numbers(0))
			o.assign(0)
			o.refeed(t, 0, tk)
			eventually(t, "it waits", func() bool {
				o.mu.Lock()
				defer o.mu.Unlock()
				return o.parts[topicPartition{Topic("t.", millrace.Normal), 0}].unlooked == 0
			})
			if got := p.startsOf(tk.ID); got != "[a]" {
				t.Errorf("started %s while it runs", got)
			}
			release()
			eventually(t, "its record is done", func() bool {
				o.mu.Lock()
				defer o.mu.Unlock()
				return o.parts[topicPartition{Topic("t.", millrace.Normal), 0}].tracker.next == 1
			})
			if got := p.startsOf(tk.ID); got != "[a]" {
				t.Errorf("started %s, want one run", got)
			}
			if n := o.held(); n != 0 {
				t.Errorf("%d bytes are left", n)
			}
		})
	}
}
