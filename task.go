package millrace

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits on the parts of a task that travel outside its payload. They are the
// same for HTTP and Kafka, so that what one way accepts the other can carry.
const (
	MaxConversationBytes = 256
	MaxIDBytes           = 256
	MaxTypeBytes         = 128
	MaxTenantBytes       = 128
	MaxSourceBytes       = 512
	MaxAttributes        = 32
	MaxAttributeBytes    = 1024
	MaxAttempts          = 100
)

// DefaultType is the type of a task that does not name one.
const DefaultType = "task"

// Priority names a class of tasks with a topic of its own. A higher priority
// may overtake a waiting task of a lower one in the same conversation.
type Priority string

// The priorities of a default installation, from first to last served.
const (
	High   Priority = "high"
	Normal Priority = "normal"
	Batch  Priority = "batch"
)

// DefaultPriorities returns the default priorities, highest first.
func DefaultPriorities() []Priority { return []Priority{High, Normal, Batch} }

// Validate reports whether p can name a priority, and with it a topic: 1 to 32
// lower-case letters, digits and dashes.
func (p Priority) Validate() error {
	if p == "" || len(p) > 32 {
		return fmt.Errorf("priority %q: want 1 to 32 characters", string(p))
	}
	for _, r := range string(p) {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("priority %q: want lower-case letters, digits and dashes", string(p))
		}
	}
	return nil
}

// OnBusy says what is to happen to a task that comes while another of its
// conversation runs or waits.
type OnBusy string

// The busy policies. The empty one is BusyEnqueue.
const (
	// BusyEnqueue: the task waits for its turn.
	BusyEnqueue OnBusy = "enqueue"
	// BusyInterrupt: the task waits, and the turn that runs, or waits for its next
	// attempt, is ended for it.
	BusyInterrupt OnBusy = "interrupt"
	// BusyReject: the task fails at once, without a turn.
	BusyReject OnBusy = "reject"
	// BusyCoalesce: the task waits, and one turn answers it together with those
	// that wait next to it and say the same.
	BusyCoalesce OnBusy = "coalesce"
)

// Validate reports whether b is empty or a policy.
func (b OnBusy) Validate() error {
	switch b {
	case "", BusyEnqueue, BusyInterrupt, BusyReject, BusyCoalesce:
		return nil
	}
	return fmt.Errorf("on busy %q: want %s, %s, %s or %s", string(b), BusyEnqueue, BusyCoalesce, BusyInterrupt, BusyReject)
}

// Status says how far a task has come.
type Status string

// The states of a task. Completed, failed and cancelled are final.
const (
	StatusQueued    Status = "queued"
	StatusRunning   Status = "running"
	StatusWaiting   Status = "waiting"
	StatusCompleted Status = "completed"
	StatusFailed    Status = "failed"
	StatusCancelled Status = "cancelled"
)

// Final reports whether nothing more will happen to a task in this state,
// short of a redrive.
func (s Status) Final() bool {
	return s == StatusCompleted || s == StatusFailed || s == StatusCancelled
}

// Task is one unit of work. The zero value of every field but ID, Type and
// Payload means "not given".
type Task struct {
	// ID identifies the task for ever: a task is done once per (ID, Redrive).
	ID string
	// Conversation orders tasks and owns their state. Empty means an unkeyed
	// task: no conversation, no order, any worker.
	Conversation string
	// Type selects routing, timeouts and rules.
	Type string
	// Priority is the topic that the task travels in; it is not in the record.
	Priority Priority
	// Tenant is on whose behalf the task runs.
	Tenant string
	// Source is the CloudEvents source: a URI reference of who made the task.
	Source string
	// Time is when the task was made.
	Time time.Time
	// Deadline is when running the task stops making sense.
	Deadline time.Time
	// MaxAttempts bounds how often the handler is tried. 0 means the worker's
	// default.
	MaxAttempts int
	// OnBusy is what happens to the task when it comes while another of its
	// conversation runs or waits. It means nothing to an unkeyed task.
	OnBusy OnBusy
	// Redrive counts how often the task was sent again after it had become a
	// dead letter.
	Redrive int
	// ContentType describes Payload as a media type. Empty means unknown bytes.
	ContentType string
	// Payload is the task's input, as is.
	Payload []byte
	// Attributes are further CloudEvents extensions: names of 1 to 20 lower-case
	// letters and digits.
	Attributes map[string]string
	// TraceParent and TraceState continue the sender's trace (W3C Trace Context).
	TraceParent string
	TraceState  string
}

// ScheduledTask is a task that is to be held back until its time.
type ScheduledTask struct {
	Task Task
	// RunAt is when the task is released to the workers. It is the task's time in
	// its record then.
	RunAt time.Time
}

// Key identifies one run of a task to its end: redriving a dead letter starts
// another run under the same id.
type Key struct {
	ID      string
	Redrive int
}

// Key returns what completions, steps and events of this run are keyed by.
func (t *Task) Key() Key { return Key{ID: t.ID, Redrive: t.Redrive} }

// Validate reports all that keeps t from being sent.
func (t *Task) Validate() error {
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	if t.ID == "" {
		check(errors.New("id: missing"))
	}
	check(validText("id", t.ID, MaxIDBytes))
	check(ValidateConversation(t.Conversation))
	check(validText("type", t.Type, MaxTypeBytes))
	check(validText("tenant", t.Tenant, MaxTenantBytes))
	check(validText("source", t.Source, MaxSourceBytes))
	if t.MaxAttempts < 0 || t.MaxAttempts > MaxAttempts {
		check(fmt.Errorf("max attempts %d: want 1 to %d, or 0 for the default", t.MaxAttempts, MaxAttempts))
	}
	check(t.OnBusy.Validate())
	if t.Redrive < 0 {
		check(fmt.Errorf("redrive %d: want 0 or more", t.Redrive))
	}
	if len(t.Attributes) > MaxAttributes {
		check(fmt.Errorf("%d attributes: at most %d", len(t.Attributes), MaxAttributes))
	}
	for name, value := range t.Attributes {
		check(ValidateAttribute(name, value))
	}
	return errors.Join(errs...)
}

// ValidateConversation reports whether id can name a conversation: UTF-8
// without control characters, at most [MaxConversationBytes] bytes. The empty
// string, an unkeyed task, is valid.
func ValidateConversation(id string) error {
	return validText("conversation", id, MaxConversationBytes)
}

// ValidateAttribute reports whether name and value can be a task attribute.
func ValidateAttribute(name, value string) error {
	if name == "" || len(name) > 20 {
		return fmt.Errorf("attribute %q: want a name of 1 to 20 characters", name)
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return fmt.Errorf("attribute %q: want a name of lower-case letters and digits", name)
		}
	}
	if reservedAttribute(name) {
		return fmt.Errorf("attribute %q: the name is taken by the task format", name)
	}
	return validText("attribute "+name, value, MaxAttributeBytes)
}

func validText(what, s string, maxBytes int) error {
	if len(s) > maxBytes {
		return fmt.Errorf("%s: %d bytes, at most %d", what, len(s), maxBytes)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s: not valid UTF-8", what)
	}
	if strings.IndexFunc(s, unicode.IsControl) >= 0 {
		return fmt.Errorf("%s: contains a control character", what)
	}
	return nil
}
