package consumer

import (
	"context"
	"testing"
	"time"

	"millrace"
)

func TestBacklogOfOnePriorityDoesNotKeepAnotherFromBeingRead(t *testing.T) {
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
	b, store := newBroker(t), newMemoryStore()
	var tasks []millrace.Task
	for i := range 60 {
		tk := task("c", i, millrace.Normal)
		tk.Payload = make([]byte, 2000)
		tasks = append(tasks, tk)
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
	small := func(c *Config) { c.IntakeBytes, c.RevokeGrace = 60_000, 10*time.Millisecond }
	engine, _ := b.start(t, store, handler, small)
	b.send(t, tasks...)
	isPaused := func(e *Engine) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, p := range e.parts {
			if p.paused {
				return true
			}
		}
		return false
	}
	eventually(t, "the partition is paused", func() bool { return isPaused(engine) })
	// Others join until the paused partition has moved, then all but the first leave.
	var stops []func()
	for isPaused(engine) {
		before := len(stops)
		_, stop := b.start(t, store, handler, small)
		stops = append(stops, stop)
		eventually(t, "the group is balanced", func() bool {
			engine.mu.Lock()
			defer engine.mu.Unlock()
			return len(engine.parts) <= 3*((testPartitions+before+1)/(before+2))
		})
		if len(stops) == testPartitions {
			break
		}
	}
	for _, stop := range stops {
		stop()
	}
	close(release)
	store.await(t, len(tasks))
}

func TestStopDoesNotWaitForAKafkaThatIsGone(t *testing.T) {
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
	t.Logf("stopping took %s", time.Since(began))
}
