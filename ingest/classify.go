package ingest

import (
	"context"
	"time"

	"millrace"
)

// Request is what a task is classified by.
type Request struct {
	Type         string
	Tenant       string
	Conversation string
	// Size is the payload's, in bytes.
	Size int
	// Priority is what the sender wishes for. Empty: it did not say.
	Priority millrace.Priority
	// Deadline is zero for a task without one.
	Deadline time.Time
	// Now is when the task was taken in.
	Now        time.Time
	Attributes map[string]string
}

// Classifier decides which priority a task gets. The empty priority means that
// it has no opinion: the task then gets what its sender wishes for, or the
// default. An error refuses the task with a 503. It is called from many
// goroutines at once. [Rules] is one.
type Classifier interface {
	Classify(ctx context.Context, r *Request) (millrace.Priority, error)
}
