package consumer

import "millrace"

// cache keeps lanes that have nothing to do, for the conversations that they
// hold: the next task of one starts without a round trip. It is bounded in bytes
// and forgets what was used longest ago. Everything in it may be out of date:
// the store compares versions when a turn commits. Its caller serialises access.
type cache struct {
	bound, bytes int64
	count        int
	newest       *lane
	oldest       *lane
}

// idleLane is a lane's place in the cache. size is 0 when it is not there.
type idleLane struct {
	newer, older *lane
	size         int64
}

// put takes a lane in, or reports that it is too large. It returns the lanes
// that have to go for it.
func (c *cache) put(l *lane) (kept bool, out []*lane) {
	size := conversationBytes(l.conv)
	if size > c.bound {
		return false, nil
	}
	l.idle = idleLane{older: c.newest, size: size}
	if c.newest == nil {
		c.oldest = l
	} else {
		c.newest.idle.newer = l
	}
	c.newest = l
	c.count++
	for c.bytes += size; c.bytes > c.bound; {
		out = append(out, c.oldest)
		c.take(c.oldest)
	}
	return true, out
}

// take removes a lane if it is there.
func (c *cache) take(l *lane) {
	if l.idle.size == 0 {
		return
	}
	newer, older := l.idle.newer, l.idle.older
	if newer == nil {
		c.newest = older
	} else {
		newer.idle.older = older
	}
	if older == nil {
		c.oldest = newer
	} else {
		older.idle.newer = newer
	}
	c.bytes -= l.idle.size
	c.count--
	l.idle = idleLane{}
}

// conversationBytes is about what a conversation takes.
func conversationBytes(c *millrace.Conversation) int64 {
	size := int64(400 + len(c.ID) + len(c.State))
	for i := range c.Tail {
		size += int64(120 + len(c.Tail[i].Content))
	}
	return size
}
