package consumer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"millrace"
)

func TestCacheDropsWhatWasUsedLongestAgoAtItsBound(t *testing.T) {
	lanes := make([]*lane, 5)
	for i := range lanes {
		l := newLane(laneKey{conversation: fmt.Sprintf("c%d", i)}, 1)
		l.conv = &millrace.Conversation{ID: l.key.conversation, State: make([]byte, 600)}
		lanes[i] = l
	}
	size := conversationBytes(lanes[0].conv)
	c := cache{bound: 3 * size}
	put := func(l *lane, want ...*lane) {
		t.Helper()
		if out := c.put(l); !slices.Equal(out, want) {
			t.Fatalf("put %s: %d have to go, want %d", l.conv.ID, len(out), len(want))
		}
	}
	put(lanes[0])
	put(lanes[1])
	put(lanes[2])
	c.take(lanes[0])
	put(lanes[0]) // used again
	put(lanes[3], lanes[1])
	c.take(lanes[1]) // is not there
	if c.bytes != 3*size || c.count != 3 {
		t.Errorf("%d bytes of %d conversations, want %d of 3", c.bytes, c.count, 3*size)
	}
	lanes[4].conv.State = make([]byte, 10*size)
	put(lanes[4], lanes[4])            // exceeds the bound: takes nobody's place
	for _, i := range []int{3, 2, 0} { // from the newest, the oldest and the last place
		c.take(lanes[i])
	}
	if c.bytes != 0 || c.count != 0 || c.newest != nil || c.oldest != nil {
		t.Errorf("after all were taken: %d bytes of %d conversations", c.bytes, c.count)
	}
}

func TestAConversationIsOpenedOnceWhileItsPartitionStays(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	opened := &countingStore{memoryStore: store}
	engine, _ := b.start(t, opened, appendTask, nil)
	for n := range 5 {
		b.send(t, task("c", n, millrace.Normal))
		store.await(t, n+1) // the lane is empty in between
	}
	if got := opened.opens.Load(); got != 1 {
		t.Errorf("opened %d times, want once", got)
	}
	done := store.await(t, 5)
	if last := done[4].Base; last.Version != 4 || last.Length != 4 {
		t.Errorf("the last turn ran on version %d with %d messages, want 4 with 4", last.Version, last.Length)
	}
	engine.takeAway(partitionsOf(engine))
	engine.mu.Lock()
	defer engine.mu.Unlock()
	if n := engine.cache.count; n != 0 || len(engine.lanes) != 0 {
		t.Errorf("%d conversations of partitions that were taken away are kept, in %d lanes", n, len(engine.lanes))
	}
}

// Without a cache nothing is kept between turns, not even for tasks that wait in
// the lane already.
func TestWithoutACacheEveryTurnOpensItsConversation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		opened := &countingStore{memoryStore: store}
		o := newOffline(t, opened, appendTask, func(c *Config) { c.CacheBytes = -1 })
		o.assign(0)
		for n := range 5 {
			o.feed(t, 0, task("c", n, millrace.Normal))
		}
		done := store.await(t, 5)
		synctest.Wait()
		if last := done[4].Base; opened.opens.Load() != 5 || last.Version != 4 || last.Length != 4 {
			t.Errorf("opened %d times, the last turn ran on version %d with %d messages, want 5, 4 and 4", opened.opens.Load(), last.Version, last.Length)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.cache.count != 0 || o.cache.bytes != 0 || len(o.lanes) != 0 {
			t.Errorf("%d bytes of %d conversations are kept, in %d lanes", o.cache.bytes, o.cache.count, len(o.lanes))
		}
	})
}

// Lanes that wait hold conversations too: they are bounded with the others.
func TestConversationsOfWaitingLanesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, bound = 10_000, 55_000
		var o *offline
		most := 0
		grow := func(_ context.Context, turn *millrace.Turn) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			held := 0
			for _, l := range o.lanes {
				if !l.running && l.conv != nil {
					held += len(l.conv.State)
				}
			}
			most = max(most, held)
			return turn.SetState(strings.Repeat("x", size))
		}
		store := newMemoryStore()
		o = newOffline(t, store, grow, func(c *Config) { c.Slots, c.CacheBytes = 1, bound })
		o.assign(0)
		for n := range 3 {
			for c := range 20 {
				o.feed(t, 0, task(fmt.Sprintf("c%d", c), n, millrace.Normal))
			}
		}
		store.await(t, 60)
		synctest.Wait()
		if most > bound || most < bound/2 {
			t.Errorf("%d bytes of conversations in lanes that do not run, want some, at most %d", most, bound)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if left := len(o.lanes); left > bound/size {
			t.Errorf("%d lanes are left, with room for %d conversations", left, bound/size)
		}
	})
}
