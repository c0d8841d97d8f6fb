package millrace

import "context"

// Handler runs turns. A worker calls it from many goroutines at once, but never
// twice at once for one conversation.
//
// Returning nil commits the turn's effects and completes the task. Returning an
// error drops them: the task is tried again with backoff, unless the error says
// otherwise (see [Permanent] and [RetryAfter]). A panic counts as an error.
//
// The context ends when the worker is told to stop and the turn has outlived
// the time it was given, and when the task's deadline passes.
type Handler interface {
	Handle(ctx context.Context, turn *Turn) error
}

// HandlerFunc makes a function a [Handler].
type HandlerFunc func(ctx context.Context, turn *Turn) error

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, turn *Turn) error { return f(ctx, turn) }
