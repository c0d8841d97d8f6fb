package consumer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

// pasts returns the fields of all pasts and marks that Redis holds.
func pasts(t *testing.T, client *redis.Client) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, pattern := range []string{"*past:*", "*marked:*"} {
		for _, key := range client.Keys(t.Context(), pattern).Val() {
			for field, value := range client.HGetAll(t.Context(), key).Val() {
				out[field] = value
			}
		}
	}
	return out
}

// everywhere names all partition numbers.
func everywhere() []int32 {
	var out []int32
	for n := range int32(testPartitions) {
		out = append(out, n)
	}
	return out
}

func TestFailedAttemptsAreRememberedByTheNextOwner(t *testing.T) {
	for _, tt := range []struct{ name, conversation string }{{"keyed", "c"}, {"unkeyed", ""}} {
		t.Run(tt.name, func(t *testing.T) {
			b, store := newBroker(t), newMemoryStore()
			client, _ := newRedis(t)
			withRedis := func(c *Config) { c.Redis, c.MaxAttempts = client, 3 }
			failing := func(_ context.Context, turn *millrace.Turn) error {
				if turn.Task().Type == "fine" {
					return nil
				}
				return millrace.RetryAfter(time.Minute, errors.New("not now"))
			}
			tk, fine := task(tt.conversation, 0, millrace.Normal), task("fine", 0, millrace.Normal)
			fine.Type = "fine"
			b.send(t, tk, fine)
			_, stop := b.start(t, store, failing, withRedis)
			store.await(t, 1)
			eventually(t, "the attempt is written down", func() bool { return len(pasts(t, client)) == 1 })
			if got := pasts(t, client)["f:0:"+tk.ID]; got != "1" {
				t.Errorf("Redis holds %v, want one failed attempt of the one that failed", pasts(t, client))
			}
			stop() // with a retry due in a minute; the next owner tries at once

			_, stop = b.start(t, store, failing, withRedis)
			eventually(t, "the second attempt is written down", func() bool { return pasts(t, client)["f:0:"+tk.ID] == "2" })
			stop()

			var attempt int
			b.start(t, store, func(_ context.Context, turn *millrace.Turn) error {
				attempt = turn.Attempt()
				return nil
			}, withRedis)
			done := store.await(t, 2)[1]
			if attempt != 3 || done.Attempts != 3 || done.Status != millrace.StatusCompleted {
				t.Errorf("ran as attempt %d and ended %s after %d attempts, want completed after 3", attempt, done.Status, done.Attempts)
			}
			eventually(t, "nothing is left of it", func() bool { return len(pasts(t, client)) == 0 })
		})
	}
}

func TestAttemptsThatAreSpentBeforeAWorkerDiesAreNotTriedAgain(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	tk, again := task("c", 0, millrace.Normal), task("d", 0, millrace.Normal)
	again.Redrive = 1
	dead, notes := newHandover(client, "millrace:", "default"), make(map[noteKey]note)
	for _, n := range everywhere() {
		notes[noteKey{n, taskField(tk.Key())}] = note{failed: 2}
		notes[noteKey{n, taskField(millrace.Key{ID: again.ID})}] = note{failed: 2}
	}
	if err := dead.write(t.Context(), notes); err != nil {
		t.Fatal(err)
	}
	b.send(t, tk, again)
	ran := make(chan string, 10)
	b.start(t, store, func(_ context.Context, turn *millrace.Turn) error {
		ran <- turn.Task().ID
		return nil
	}, func(c *Config) { c.Redis, c.MaxAttempts = client, 2 })
	for _, c := range store.await(t, 2) {
		switch {
		case c.Task.ID == tk.ID && (c.DeadLetter == nil || c.DeadLetter.Reason != millrace.ReasonAttemptsExhausted || c.Attempts != 2):
			t.Errorf("dead letter %+v after %d attempts, want attempts exhausted after 2", c.DeadLetter, c.Attempts)
		case c.Task.ID == again.ID && (c.Status != millrace.StatusCompleted || c.Attempts != 1):
			t.Errorf("the redrive ended %s after %d attempts, want completed at its first", c.Status, c.Attempts)
		}
	}
	if id := <-ran; id != again.ID || len(ran) != 0 {
		t.Errorf("%s ran and %d more, want the redrive alone", id, len(ran))
	}
}

func TestAFailureAfterItsPartitionMovedCountsAtTheNextOwner(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	withRedis := func(c *Config) { c.Redis, c.Slots = client, 200 }
	fail := make(chan struct{})
	convs := spreadOut(1)
	var tasks []millrace.Task
	for _, c := range convs {
		tasks = append(tasks, task(c, 0, millrace.Normal))
	}
	b.send(t, tasks...)
	first, _ := b.start(t, store, func(context.Context, *millrace.Turn) error {
		<-fail
		return errors.New("failed after all")
	}, withRedis)
	eventually(t, "all run", func() bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		return len(first.running) == len(tasks)
	})
	second, _ := b.start(t, store, func(context.Context, *millrace.Turn) error { return nil }, withRedis)
	eventually(t, "turns are waited for", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		return len(second.holds) > 0
	})
	var held []turnName
	second.mu.Lock()
	for key := range second.holds {
		held = append(held, key.turn)
	}
	second.mu.Unlock()
	close(fail)
	// The first goes on failing what it has kept: that is not looked at.
	ended := func(name turnName) (c millrace.Completion, ok bool) {
		store.mu.Lock()
		defer store.mu.Unlock()
		for _, c := range store.order {
			if conversationName(c.Task.Conversation) == name {
				return c, true
			}
		}
		return c, false
	}
	for _, name := range held {
		var c millrace.Completion
		eventually(t, "it ends", func() (ok bool) { c, ok = ended(name); return ok })
		if c.Status != millrace.StatusCompleted || c.Attempts != 2 {
			t.Errorf("%s ended %s after %d attempts, want completed after 2", name, c.Status, c.Attempts)
		}
	}
}

func TestRedisOutCostsTheCountAndNotTheTask(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	server.SetError("redis is out")
	tries := 0
	engine, _ := b.start(t, store, func(context.Context, *millrace.Turn) error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	}, func(c *Config) { c.Redis = client })
	b.send(t, task("c", 0, millrace.Normal))
	if c := store.await(t, 1)[0]; c.Attempts != 3 || c.Status != millrace.StatusCompleted {
		t.Errorf("ended %s after %d attempts, want completed after 3", c.Status, c.Attempts)
	}
	server.SetError("")
	eventually(t, "all is written that was to be", func() bool {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		return len(engine.notes) == 0
	})
	if left := pasts(t, client); len(left) != 0 {
		t.Errorf("Redis holds %v of a task that is done", left)
	}
}

// A sender's repeat of what kills workers would otherwise run as if it had no past.
func TestRepeatsOfATaskInOneBatchShareItsPast(t *testing.T) {
	client, _ := newRedis(t)
	o := newOffline(t, newMemoryStore(), appendTask, func(c *Config) { c.Redis = client })
	tk := task("c", 0, millrace.Normal)
	hash := o.handover.pasts(0)
	if err := client.HSet(t.Context(), hash, "f:"+taskField(tk.Key()), 2, "d:"+taskField(tk.Key()), "sone stwo ").Err(); err != nil {
		t.Fatal(err)
	}
	o.assign(0)
	part := o.part(millrace.Normal, 0)
	items := []*item{{task: tk, part: part, lookUp: true}, {task: tk, part: part, lookUp: true}}
	o.recallBatch(t.Context(), []fetched{{part, items}})
	for i, it := range items {
		if it.attempts != 2 || !it.deaths.suspect() || !it.recorded {
			t.Errorf("copy %d: %d attempts, deaths %q, recorded %v", i, it.attempts, it.deaths, it.recorded)
		}
	}
}
