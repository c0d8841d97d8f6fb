package consumer

import (
	"fmt"
	"slices"
	"testing"

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
		kept, out := c.put(l)
		if !kept || !slices.Equal(out, want) {
			t.Fatalf("put %s: kept %v, %d have to go, want %d", l.conv.ID, kept, len(out), len(want))
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
	if kept, out := c.put(lanes[4]); kept || len(out) > 0 {
		t.Error("one that exceeds the bound took the place of others")
	}
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
