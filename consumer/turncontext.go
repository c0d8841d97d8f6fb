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

	mu    sync.Mutex
	armed context.Context //nolint:containedctx // what Done and everything after it goes by
	// disarm is set with armed.
	disarm context.CancelCauseFunc
	ended  bool
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
	switch {
	case c.armed != nil:
		return c.armed.Err()
	case c.ended:
		return context.Canceled
	case c.parent.Err() != nil:
		return c.parent.Err()
	case !time.Now().Before(c.deadline):
		return context.DeadlineExceeded
	}
	return nil
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
// canceled from then on, as contexts with a deadline are.
func (c *turnContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.armed != nil {
		c.disarm(context.Canceled)
	}
}
