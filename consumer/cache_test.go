package consumer

import (
	"fmt"
	"testing"

	"millrace"
)

func TestCacheDropsWhatWasUsedLongestAgoAtItsBound(t *testing.T) {
	conv := func(id string) *millrace.Conversation {
		return &millrace.Conversation{ID: id, State: make([]byte, 600)}
	}
	size := conversationBytes(conv("c0"))
	c := newCache(3 * size)
	key := func(i int) laneKey { return laneKey{partition: int32(i % 2), conversation: fmt.Sprintf("c%d", i)} }
	for i := range 3 {
		c.put(key(i), conv(key(i).conversation))
	}
	if got := c.take(key(0)); got == nil || got.ID != "c0" {
		t.Fatalf("took %v", got)
	}
	c.put(key(0), conv("c0")) // used again
	c.put(key(3), conv("c3"))
	if c.take(key(1)) != nil {
		t.Error("the one used longest ago is still there")
	}
	if c.bytes != 3*size || len(c.held) != 3 {
		t.Errorf("%d bytes of %d conversations, want %d of 3", c.bytes, len(c.held), 3*size)
	}
	c.put(key(4), &millrace.Conversation{ID: "huge", State: make([]byte, 10*size)})
	if c.take(key(4)) != nil || len(c.held) != 3 {
		t.Error("one that exceeds the bound took the place of others")
	}
	c.drop(map[int32][]*partition{1: nil})
	if c.take(key(3)) != nil || c.take(key(0)) == nil || c.take(key(2)) == nil || c.bytes != 0 {
		t.Errorf("after the drop of a partition: %d bytes left", c.bytes)
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
	if n := len(engine.cache.held); n != 0 {
		t.Errorf("%d conversations of partitions that were taken away are kept", n)
	}
}
