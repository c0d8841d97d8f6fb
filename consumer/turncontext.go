package consumer

import (
	"context"
	"sync"
	"time"
)

// turnContext is the context of one handler call: its partition's, with a
// deadline. A context with a deadline of the standard library costs a timer and
// an entry with its parent, whether anybody waits for it or not, and most of
// what a short turn costs is that. This one makes them when Done is first
// called.
type turnContext struct {
	parent   context.Context //nolint:containedctx // it is one itself
	deadline time.Time
	// started and attempt are for who asks after the turn.
	started time.Time
	attempt int

	mu    sync.Mutex
	armed context.Context //nolint:containedctx // what Done and everything after it goes by
	// disarm is set with armed.
	disarm context.CancelCauseFunc
	ended  bool
	// cause is why the context was ended before its handler returned.
	cause error

	// The watchdog's own: since when it has seen the context ended, and whether it
	// has told so.
	seenOver time.Time
	reported bool
}

func newTurnContext(parent context.Context, deadline time.Time) *turnContext {
	return &turnContext{parent: parent, deadline: deadline}
}

// Deadline implements context.Context. The parent has none.
func (c *turnContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Done implements context.Context.
func (c *turnContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arm()
	return c.armed.Done()
}

func (c *turnContext) arm() {
	if c.armed != nil {
		return
	}
	var stopTimer context.CancelFunc
	base, cancel := context.WithCancelCause(c.parent)
	c.armed, stopTimer = context.WithDeadline(base, c.deadline)
	c.disarm = func(cause error) {
		cancel(cause)
		stopTimer()
	}
	if c.ended {
		c.disarm(context.Canceled)
	}
}

// Err implements context.Context. Before anybody has asked for Done it says what
// it would say after.
func (c *turnContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.armed != nil {
		return c.armed.Err() // not before Done is closed
	}
	return c.errAt(time.Now())
}

// errAt says how the context stands, also when its timer is late.
func (c *turnContext) errAt(now time.Time) error {
	switch {
	case c.armed != nil && c.armed.Err() != nil:
		return c.armed.Err()
	case c.ended:
		return context.Canceled
	case c.parent.Err() != nil:
		return c.parent.Err()
	case !now.Before(c.deadline):
		return context.DeadlineExceeded
	}
	return nil
}

// cancel ends the context for a cause that context.Cause tells, unless it has
// ended already.
func (c *turnContext) cancel(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.errAt(time.Now()) != nil {
		return
	}
	c.cause = cause
	c.arm()
	c.disarm(cause)
}

// over returns since when the context has ended, and why. A nil cause says that
// it has not. It is the watchdog's.
func (c *turnContext) over(now time.Time) (since time.Time, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.errAt(now)
	switch {
	case err == nil || c.ended:
		return time.Time{}, nil
	case c.seenOver.IsZero() && !now.Before(c.deadline):
		c.seenOver = c.deadline
	case c.seenOver.IsZero():
		c.seenOver = now
	}
	if c.cause != nil {
		err = c.cause
	}
	return c.seenOver, err
}

// Value implements context.Context. It goes by the armed context, by which the
// standard library knows its own and ties children to them without a goroutine.
func (c *turnContext) Value(key any) any {
	c.mu.Lock()
	ctx := c.armed
	c.mu.Unlock()
	if ctx == nil {
		ctx = c.parent
	}
	return ctx.Value(key)
}

// end releases what the context holds once the handler has returned: it is
// canceled from then on, as contexts with a deadline are. It returns what had
// ended it before, or nil.
func (c *turnContext) end(now time.Time) (endedBy error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if endedBy = c.cause; endedBy == nil {
		endedBy = c.errAt(now)
	}
	c.ended = true
	if c.armed != nil {
		c.disarm(context.Canceled)
	}
	return endedBy
}
