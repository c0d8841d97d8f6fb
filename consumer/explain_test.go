package consumer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// gated is a handler whose turns wait until they are let go.
func gated(release <-chan struct{}) millrace.HandlerFunc {
	return func(ctx context.Context, turn *millrace.Turn) error {
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		return appendTask(ctx, turn)
	}
}

func TestExplainSaysWhatATaskWaitsForInItsLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		o := newOffline(t, newMemoryStore(), gated(release), func(c *Config) { c.Slots, c.TurnTimeout = 1, time.Minute })
		defer close(release)
		o.assign(0)
		running := task("c", 0, millrace.Normal)
		o.feed(t, 0, running)
		synctest.Wait()
		o.feed(t, 0, task("c", 1, millrace.Normal), task("c", 2, millrace.Normal), task("c", 0, millrace.High),
			task("a", 0, millrace.Normal), task("b", 0, millrace.Normal))
		started := time.Now()
		synctest.Wait()
		<-time.After(time.Second)

		x := o.Explain(running.ID, nil)
		if x.State != Running || x.Attempt != 1 || !x.StartedAt.Equal(started) || !x.TimesOutAt.Equal(started.Add(time.Minute)) || x.MaxAttempts != 5 {
			t.Errorf("running: %+v", x)
		}
		x = o.Explain("c/high/0", nil)
		if x.State != WaitingForConversation || x.TasksBefore != 1 || x.RunningTask != running.ID || x.Priority != millrace.High {
			t.Errorf("overtakes, but not the running one: %+v", x)
		}
		x = o.Explain("c/normal/2", nil)
		if x.State != WaitingForConversation || x.TasksBefore != 3 || x.Offset != 2 || x.Topic != "t.tasks.normal" || x.ConversationID != "c" {
			t.Errorf("behind three: %+v", x)
		}
		x = o.Explain("b/normal/0", nil)
		if x.State != WaitingForSlot || x.ConversationsBefore != 1 || x.Slots != 1 || x.BusySlots != 1 {
			t.Errorf("behind another conversation: %+v", x)
		}
		if x = o.Explain("nobody", nil); x.State != Absent {
			t.Errorf("unknown: %+v", x)
		}
	})
}

func TestExplainNamesSlotsKeptForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		o := newOffline(t, newMemoryStore(), gated(release), func(c *Config) {
			c.Slots, c.Reserved = 3, map[millrace.Priority]int{millrace.High: 2}
		})
		defer close(release)
		o.assign(0)
		o.feed(t, 0, task("a", 0, millrace.Batch), task("b", 0, millrace.Batch))
		synctest.Wait()
		if x := o.Explain("b/batch/0", nil); x.State != WaitingForSlot || x.BusySlots != 1 || x.ReservedSlots != 2 {
			t.Errorf("got %+v", x)
		}
	})
}

func TestExplainSaysWhenATaskIsTriedAgainAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffline(t, newMemoryStore(), func(_ context.Context, turn *millrace.Turn) error {
			if turn.Task().Conversation == "out" {
				return millrace.Unavailable(errors.New("the index is away"))
			}
			return millrace.RetryAfter(time.Minute, errors.New("come back later"))
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal), task("out", 0, millrace.Normal))
		began := time.Now()
		synctest.Wait()
		x := o.Explain("c/normal/0", nil)
		if x.State != WaitingForRetry || x.Attempt != 1 || x.MaxAttempts != 5 || x.LastError != "come back later (retry after 1m0s)" || !x.RetryAt.Equal(began.Add(time.Minute)) {
			t.Errorf("retry: %+v", x)
		}
		x = o.Explain("c/normal/1", nil)
		if x.State != WaitingForConversation || x.TasksBefore != 1 || x.RunningTask != "" || !x.RetryAt.Equal(began.Add(time.Minute)) {
			t.Errorf("behind a retry: %+v", x)
		}
		x = o.Explain("out/normal/0", nil)
		if x.State != WaitingForRetry || x.Attempt != 0 || x.Outages != 1 || x.LastError != "the index is away" {
			t.Errorf("outage: %+v", x)
		}
		o.lose(0)
	})
}

func TestExplainTellsTheUnreadFromTheDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		store := newMemoryStore()
		o := newOffline(t, store, gated(release), func(c *Config) { c.Slots, c.IntakeOffsets = 1, 2 })
		o.assign(0)
		topic := Topic("t.", millrace.Normal)
		place := func(offset int64) *Place { return &Place{topic, 0, offset} }
		if x := o.Explain("later", place(0)); x.State != Unread || x.ReadTo != -1 || x.PausedBy != "" {
			t.Errorf("nothing read yet: %+v", x)
		}
		o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal), task("c", 2, millrace.Normal))
		synctest.Wait()
		o.mu.Lock()
		p := o.parts[topicPartition{topic, 0}]
		p.paused = o.wantPaused(p) // what the intake loop does beside telling Kafka
		o.mu.Unlock()
		if x := o.Explain("later", place(3)); x.State != Unread || x.ReadTo != 2 || x.CommittedTo != 0 || x.PausedBy != "offsets" || x.Priority != millrace.Normal {
			t.Errorf("paused: %+v", x)
		}
		if x := o.Explain("later", &Place{topic, 1, 0}); x.State != Absent {
			t.Errorf("in somebody else's partition: %+v", x)
		}
		close(release)
		store.await(t, 3)
		synctest.Wait()
		if x := o.Explain("c/normal/0", place(0)); x.State != Done {
			t.Errorf("done: %+v", x)
		}
	})
}

func TestExplainSeesWhatIsLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffline(t, newMemoryStore(), appendTask, nil)
		o.assign(0)
		tk := task("c", 0, millrace.Normal)
		r, err := tk.Record()
		if err != nil {
			t.Fatal(err)
		}
		tp := topicPartition{Topic("t.", millrace.Normal), 0}
		o.enqueue(tp, [16]byte{}, 1, []*item{newItem(toKafka(tp, 0, &r), [16]byte{})}) // no loop takes it from there
		if x := o.Explain(tk.ID, nil); x.State != LookingUp || x.Topic != tp.topic {
			t.Errorf("got %+v", x)
		}
		o.takeUnlooked()
		if x := o.Explain(tk.ID, &Place{tp.topic, 0, 0}); x.State != LookingUp {
			t.Errorf("while the answer is awaited: %+v", x)
		}
	})
}

func TestExplainNamesWhoIsWaitedFor(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	owner := newHandover(client, defaultKeyPrefix, "chat")
	names := make(map[int32][]turnName)
	for n := range int32(testPartitions) {
		names[n] = []turnName{conversationName("held")}
	}
	if err := owner.announce(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	other := newLeases(newHandover(client, defaultKeyPrefix, "bulk"), defaultKeyPrefix, "bulk")
	if c, err := other.take(t.Context(), lease{"leased", other.owner + "/7"}); err != nil || !c.ok {
		t.Fatal(c, err)
	}
	engine, _ := b.start(t, store, appendTask, pool("chat", client, millrace.High))
	b.send(t, task("held", 0, millrace.High), task("leased", 0, millrace.High))
	var x Explanation
	eventually(t, "one is held", func() bool { x = engine.Explain("held/high/0", nil); return x.State == WaitingForOwner })
	if x.WaitsFor != owner.incarnation || x.WaitsSince.IsZero() || x.Incarnation != engine.handover.incarnation {
		t.Errorf("held: %+v", x)
	}
	eventually(t, "one waits for the other pool", func() bool { x = engine.Explain("leased/high/0", nil); return x.State == WaitingForPool })
	if x.WaitsFor != other.owner+"/7" {
		t.Errorf("leased: %+v", x)
	}
}

func TestExplainFindsATaskAmongManyWhileTurnsRun(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	release := make(chan struct{})
	engine, _ := b.start(t, store, gated(release), nil)
	var tasks []millrace.Task
	for n := range 3 * lanesAtALook {
		tasks = append(tasks, task(fmt.Sprintf("c%d", n), 0, millrace.Normal))
	}
	b.send(t, tasks...)
	last := tasks[len(tasks)-1].ID
	eventually(t, "all are read", func() bool {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		return len(engine.lanes) == len(tasks)
	})
	for range 20 {
		if x := engine.Explain(last, nil); x.State != WaitingForSlot && x.State != Running {
			t.Fatalf("got %+v", x)
		}
	}
	close(release)
	for !t.Failed() {
		if x := engine.Explain(last, nil); x.State == Absent {
			break
		}
	}
	store.await(t, len(tasks))
}

func toKafka(tp topicPartition, offset int64, r *millrace.Record) *kgo.Record {
	kr := &kgo.Record{Topic: tp.topic, Partition: tp.partition, Offset: offset, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		kr.Headers = append(kr.Headers, kgo.RecordHeader(h))
	}
	return kr
}

func TestExplainKnowsWhoRunsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		o := newOffline(t, newMemoryStore(), gated(release), nil)
		defer close(release)
		o.assign(0)
		o.feed(t, 0, task("busy", 0, millrace.Normal))
		synctest.Wait()
		o.suspected(t, 0, task("s", 0, millrace.Normal))
		synctest.Wait()
		if x := o.Explain("s/normal/0", nil); x.State != WaitingToRunAlone || x.Deaths != 2 || x.BusySlots != 1 {
			t.Errorf("while another runs: %+v", x)
		}
		release <- struct{}{}
		synctest.Wait()
		o.feed(t, 0, task("next", 0, millrace.Normal))
		if x := o.Explain("next/normal/0", nil); x.State != WaitingForSlot || x.RunsAlone != "s/normal/0" {
			t.Errorf("beside one that runs alone: %+v", x)
		}
	})
}
