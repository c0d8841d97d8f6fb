package millrace

import "context"

// Handler runs turns. A worker calls it from many goroutines at once, but never
// twice at once for one conversation. Two workers do so only when the group has
// given one of them up without its knowing; then one of the two turns commits.
//
// Returning nil commits the turn's effects and completes the task. Returning an
// error drops them: the task is tried again with backoff, unless the error says
// otherwise (see [Permanent] and [RetryAfter]). A panic counts as an error, and so
// does a call of runtime.Goexit.
//
// The context ends when the turn has used up the time for a turn
// (MILLRACE_HANDLER_TIMEOUT, or MILLRACE_TYPE_TIMEOUTS for the task's type), when
// the task's deadline passes, when the task is cancelled ([context.Cause] is
// [ErrCancelled] then), when another task interrupts it ([ErrInterrupted]), when the worker was told to stop and the turn has
// outlived the time for that, and when the task has become another worker's.
// Return soon then. What a turn collected is dropped if its context ended before
// the handler returned, even if it returned nil; of an interrupted turn, the
// messages, the result and the usage that it has collected are kept. A handler that goes on keeps its
// slot and its conversation; it is logged and counted as stuck after
// MILLRACE_STUCK_AFTER, and after MILLRACE_STUCK_LIMIT the worker reports that it
// is not live.
type Handler interface {
	Handle(ctx context.Context, turn *Turn) error
}

// HandlerFunc makes a function a [Handler].
type HandlerFunc func(ctx context.Context, turn *Turn) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, turn *Turn) error { return f(ctx, turn) }
