package consumer

import "millrace"

// cache bounds the conversations that lanes hold while they do not run, so that
// their next tasks start without a round trip. It is bounded in bytes and forgets
// what was used longest ago. Everything in it may be out of date:
// the store compares versions when a turn commits. Its caller serialises access.
type cache struct {
	bound, bytes int64
	count        int
	newest       *lane
	oldest       *lane
}

// cachedLane is a lane's place in the cache. size is 0 when it is not there.
type cachedLane struct {
	newer, older *lane
	size         int64
}

// put takes a lane in and returns those whose conversations have to go: it may
// be one of them.
func (c *cache) put(l *lane) (out []*lane) {
	size := conversationBytes(l.conv)
	if size > c.bound {
		return []*lane{l} // rather than everything else
	}
	l.cached = cachedLane{older: c.newest, size: size}
	if c.newest == nil {
		c.oldest = l
	} else {
		c.newest.cached.newer = l
	}
	c.newest = l
	c.count++
	for c.bytes += size; c.bytes > c.bound; {
		out = append(out, c.oldest)
		c.take(c.oldest)
	}
	return out
}

// take removes a lane if it is there.
func (c *cache) take(l *lane) {
	if l.cached.size == 0 {
		return
	}
	newer, older := l.cached.newer, l.cached.older
	if newer == nil {
		c.newest = older
	} else {
		newer.cached.older = older
	}
	if older == nil {
		c.oldest = newer
	} else {
		older.cached.newer = newer
	}
	c.bytes -= l.cached.size
	c.count--
	l.cached = cachedLane{}
}

// conversationBytes is about what a conversation takes.
func conversationBytes(c *millrace.Conversation) int64 {
	size := int64(400 + len(c.ID) + len(c.State))
	for i := range c.Tail {
		size += int64(120 + len(c.Tail[i].Content))
	}
	return size
}
