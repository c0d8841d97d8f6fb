package consumer

import (
	"container/list"

	"millrace"
)

// cache keeps conversations as their last turn here left them, for as long as
// this worker owns their partition and the bytes allow: the ones used longest ago
// go first. It saves the store a question; what it says is compared at the
// commit like everything else. Its caller serialises access.
type cache struct {
	bound, bytes int64
	order        *list.List // of *cached, the newest first
	held         map[laneKey]*list.Element
}

type cached struct {
	key  laneKey
	conv *millrace.Conversation
	size int64
}

func newCache(bound int64) *cache {
	return &cache{bound: bound, order: list.New(), held: make(map[laneKey]*list.Element)}
}

// take removes a conversation and returns it, or nil.
func (c *cache) take(key laneKey) *millrace.Conversation {
	element := c.held[key]
	if element == nil {
		return nil
	}
	return c.remove(element).conv
}

func (c *cache) put(key laneKey, conv *millrace.Conversation) {
	size := conversationBytes(conv)
	if size > c.bound {
		return
	}
	c.take(key)
	c.held[key] = c.order.PushFront(&cached{key: key, conv: conv, size: size})
	for c.bytes += size; c.bytes > c.bound; {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(element *list.Element) *cached {
	e := c.order.Remove(element).(*cached) // nothing else is put in
	delete(c.held, e.key)
	c.bytes -= e.size
	return e
}

// drop forgets the conversations of partition numbers that belong to others now.
func (c *cache) drop(numbers map[int32][]*partition) {
	for key, element := range c.held {
		if _, gone := numbers[key.partition]; gone {
			c.remove(element)
		}
	}
}

// conversationBytes is about what a conversation takes.
func conversationBytes(c *millrace.Conversation) int64 {
	size := int64(400 + len(c.ID) + len(c.State))
	for i := range c.Tail {
		size += int64(120 + len(c.Tail[i].Content))
	}
	return size
}
