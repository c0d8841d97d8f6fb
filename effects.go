package millrace

import (
	"encoding/json"
	"fmt"
	"time"
)

// MaxEventBytes bounds the value of an event: with its headers it must fit into
// a record of 2 MiB.
const MaxEventBytes = 2<<20 - 64<<10

// Event is something a turn tells the world. It leaves through the outbox:
// published after the turn has committed, and never when it has not.
type Event struct {
	// Type is the CloudEvents type.
	Type string `json:"type"`
	// Topic is the Kafka topic without the prefix. Empty means "results".
	Topic string `json:"topic,omitempty"`
	// Key is the Kafka key. Empty means the conversation, or the task id of an
	// unkeyed task. Events with one key are published in commit order; a key that
	// is another conversation's id is not ordered with that conversation's events.
	Key string `json:"key,omitempty"`
	// ContentType describes Data. Empty means application/json.
	ContentType string `json:"content_type,omitempty"`
	// Data is the value, at most [MaxEventBytes].
	Data []byte `json:"data"`
}

// Usage counts what a turn consumed at LLM providers.
type Usage struct {
	Calls        int64 `json:"calls,omitempty"`
	InputTokens  int64 `json:"input_tokens,omitempty"`
	OutputTokens int64 `json:"output_tokens,omitempty"`
}

// Add adds u to the receiver.
func (u *Usage) Add(other Usage) {
	u.Calls += other.Calls
	u.InputTokens += other.InputTokens
	u.OutputTokens += other.OutputTokens
}

// Effects is all that a turn wants to change. It commits as a whole or not at
// all.
type Effects struct {
	// State replaces the conversation's state. Nil leaves it.
	State json.RawMessage
	// Messages are appended to the history.
	Messages []Message
	// Events are published.
	Events []Event
	// Result is what the task's sender gets, as JSON.
	Result json.RawMessage
	// Usage is what the turn consumed.
	Usage Usage
}

// Empty reports whether there is nothing to commit but the completion itself.
func (e *Effects) Empty() bool {
	return e.State == nil && len(e.Messages) == 0 && len(e.Events) == 0 && e.Result == nil
}

// Touches reports whether the effects change the conversation.
func (e *Effects) Touches() bool { return e.State != nil || len(e.Messages) > 0 }

// DeadLetter is a task given up on.
type DeadLetter struct {
	// Reason is a stable code: one of the Reason constants.
	Reason string
	// Detail says what happened, for people.
	Detail string
	// Stack is the stack of a panicked handler.
	Stack string
	// Record is the record as it was read.
	Record Record
}

// The reasons why a decoded task becomes a dead letter.
const (
	ReasonPermanent         = "permanent_error"
	ReasonAttemptsExhausted = "attempts_exhausted"
	ReasonDeadlineExceeded  = "deadline_exceeded"
	ReasonEffectsRefused    = "effects_refused"
	ReasonKilledWorkers     = "killed_workers"
)

// Completion is the end of a task: what is committed for it.
type Completion struct {
	Task   Task
	Status Status
	// Base is the conversation that the turn ran on. Its version is compared when
	// Effects touch the conversation.
	Base Conversation
	// Attempts is how often the handler ran.
	Attempts int
	Effects  Effects
	// Error is why the task did not complete, for people.
	Error string
	// DeadLetter is set when the task was given up on.
	DeadLetter *DeadLetter
	// Also are the other tasks of the conversation that the turn has answered. They
	// end as the task does, with its result and in its transaction, or not at all.
	// One of them that was completed before stays as it is. Effects and usage are
	// the task's.
	Also       []Also
	StartedAt  time.Time
	FinishedAt time.Time
}

// Also is a task that ends along with another.
type Also struct {
	Task Task
	// DeadLetter is set when the other has one.
	DeadLetter *DeadLetter
}

// Each returns the completion of c.Also[i].
func (c *Completion) Each(i int) Completion {
	return Completion{
		Task: c.Also[i].Task, Status: c.Status, Base: c.Base, Attempts: c.Attempts,
		Effects: Effects{Result: c.Effects.Result}, Error: c.Error, DeadLetter: c.Also[i].DeadLetter,
		StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
	}
}

// EventKey returns the Kafka key of the events of this task: the conversation,
// or the task id of an unkeyed task.
func (c *Completion) EventKey() string {
	if c.Task.Conversation != "" {
		return c.Task.Conversation
	}
	return c.Task.ID
}

// TaskResult returns what the task's sender is told.
func (c *Completion) TaskResult() TaskResult {
	return TaskResult{
		TaskID:         c.Task.ID,
		ConversationID: c.Task.Conversation,
		Status:         c.Status,
		Attempts:       c.Attempts,
		Result:         c.Effects.Result,
		Usage:          c.Effects.Usage,
		Error:          c.Error,
		StartedAt:      c.StartedAt,
		FinishedAt:     c.FinishedAt,
	}
}

// Outcome says what became of a completion that was handed in to commit.
type Outcome int

// A store returns one of these for every completion.
const (
	// Committed: these effects are the task's effects.
	Committed Outcome = iota + 1
	// AlreadyCompleted: another run of the task committed first; these effects
	// are dropped.
	AlreadyCompleted
	// Conflict: the conversation has moved on since the turn read it; nothing was
	// written and the turn has to run anew.
	Conflict
)

func (o Outcome) String() string {
	switch o {
	case Committed:
		return "committed"
	case AlreadyCompleted:
		return "already completed"
	case Conflict:
		return "conflict"
	}
	return fmt.Sprintf("outcome %d", int(o))
}
