package consumer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

func TestBacklogOfOnePriorityDoesNotKeepAnotherFromBeingRead(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	release := make(chan struct{})
	var backlog []millrace.Task
	for i := range 100 {
		tk := task("c", i, millrace.Batch)
		tk.Payload = make([]byte, 2000)
		backlog = append(backlog, tk)
	}
	engine, _ := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().Priority == millrace.Batch {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return appendTask(ctx, turn)
	}, func(c *Config) { c.IntakeBytes = 60_000 })
	b.send(t, backlog...)
	eventually(t, "batch is paused", func() bool {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		for _, p := range engine.parts {
			if p.paused {
				return true
			}
		}
		return false
	})
	b.send(t, task("urgent", 0, millrace.High))
	if got, want := ids(store.await(t, 1)), "[urgent/high/0]"; got != want {
		t.Errorf("completed %s, want %s", got, want)
	}
	close(release)
	store.await(t, len(backlog)+1)
}

func TestPausedPartitionIsReadAgainAfterItLeftAndCameBack(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	// The last partition is the first that moves to a newcomer.
	const moving, n = testPartitions - 1, 60
	producer, err := kgo.NewClient(append(b.opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	for range n {
		r := &kgo.Record{Topic: Topic("t.", millrace.Normal), Partition: moving, Key: []byte("c"), Value: make([]byte, 2000)}
		if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	release := make(chan struct{})
	handler := func(ctx context.Context, turn *millrace.Turn) error {
		select {
		case <-release:
		case <-ctx.Done():
			return ctx.Err()
		}
		return appendTask(ctx, turn)
	}
	small := func(c *Config) {
		c.IntakeOffsets, c.RevokeGrace, c.DrainTimeout = 20, 10*time.Millisecond, 10*time.Millisecond
	}
	tp := topicPartition{Topic("t.", millrace.Normal), moving}
	state := func(e *Engine) (held, paused bool) {
		e.mu.Lock()
		defer e.mu.Unlock()
		p := e.parts[tp]
		return p != nil, p != nil && p.paused
	}
	first, _ := b.start(t, store, handler, small)
	eventually(t, "the partition is paused", func() bool { _, paused := state(first); return paused })
	second, stop := b.start(t, store, handler, small)
	eventually(t, "the partition has moved", func() bool { held, _ := state(second); return held })
	stop()
	eventually(t, "the partition is back", func() bool { held, _ := state(first); return held })
	close(release)
	store.await(t, n)
}

func TestStopDoesNotWaitForAKafkaThatIsGone(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	b.send(t, task("c", 0, millrace.Normal))
	_, stop := b.start(t, store, appendTask, nil)
	store.await(t, 1)
	b.cluster.Close()
	began := time.Now()
	stop()
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

func TestNoRetryAfterHoldsAConversationForMoreThanAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		o := newOffline(t, newMemoryStore(), func(context.Context, *millrace.Turn) error {
			if tries++; tries == 1 {
				return millrace.RetryAfter(365*24*time.Hour, errors.New("come back next year"))
			}
			return nil
		}, nil)
		o.assign(0)
		o.feed(t, 0, task("a", 0, millrace.Normal))
		synctest.Wait()
		<-time.After(maxRetryAfter + time.Second)
		synctest.Wait()
		if tries != 2 {
			t.Errorf("%d tries after an hour, want 2", tries)
		}
	})
}

// Slots that want to mark their turns while Redis does not answer must not wait one
// behind the other.
func TestMarkDoesNotWaitLongForThoseBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // no name: the client would look it up at once
		defer client.Close()
		o := newOffline(t, newMemoryStore(), appendTask, func(c *Config) { c.Redis = client })
		o.writing.lock()
		began := time.Now()
		if err := o.writeMarks(t.Context(), []mark{{}}); err == nil {
			t.Error("no error")
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}
