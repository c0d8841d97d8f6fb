package millrace

import (
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

// TaskResult is what is known of a task. It is the value of a result event and
// the answer of the HTTP API.
type TaskResult struct {
	TaskID         string          `json:"task_id"`
	ConversationID string          `json:"conversation_id,omitempty"`
	Status         Status          `json:"status"`
	Attempts       int             `json:"attempts"`
	Result         json.RawMessage `json:"result,omitempty"`
	// ResultOmitted says that the result is too large for an event: the API has it.
	ResultOmitted bool  `json:"result_omitted,omitempty"`
	Usage         Usage `json:"usage"`
	// RunAt is what a queued task waits for: its time, until which it is held back.
	RunAt      time.Time `json:"run_at,omitzero"`
	Error      string    `json:"error,omitempty"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
}

// Cancel says that a task has been cancelled.
type Cancel struct {
	// Key is the run of the task that was cancelled.
	Key Key
	// Conversation is the task's, if it was known when the task was cancelled.
	Conversation string
}

// ErrCancelled is why the context of a running turn has ended when its task was
// cancelled: [context.Cause] returns it.
var ErrCancelled = errors.New("the task was cancelled")

// ErrInterrupted is why the context of a running turn has ended when a task of
// its conversation came that interrupts it.
var ErrInterrupted = errors.New("the turn was interrupted by a task of its conversation")

// ErrNotFound is returned by readers for a task, conversation or dead letter
// that they do not know.
var ErrNotFound = errors.New("not found")

// The CloudEvents types of the events that Millrace itself emits.
const (
	EventTaskCompleted = "task.completed"
	EventTaskFailed    = "task.failed"
	EventTaskCancelled = "task.cancelled"
	// EventTaskDeadLetter is the type of the copy in the dead-letter topic.
	EventTaskDeadLetter = "task.deadletter"
)

// ResultEventType returns the type of the result event for a final status.
func ResultEventType(s Status) string { return "task." + string(s) }

// ResultEventID returns the stable id of the result event of one run of a task.
func ResultEventID(k Key) string { return eventID(k, "result") }

// DeadLetterEventID returns the stable id of the copy in the dead-letter topic.
func DeadLetterEventID(k Key) string { return eventID(k, "deadletter") }

// EventID returns the stable id of the i-th event, from 0, that one run of a
// task emits.
func EventID(k Key, i int) string { return eventID(k, "event"+strconv.Itoa(i)) }

func eventID(k Key, what string) string {
	id := k.ID + "." + what
	if k.Redrive > 0 {
		id += "." + strconv.Itoa(k.Redrive)
	}
	return id
}
