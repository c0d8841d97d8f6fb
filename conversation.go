package millrace

import (
	"encoding/json"
	"slices"
	"time"
)

// Message roles, as LLM providers name them.
const (
	RoleSystem    = "system"
	RoleUser      = "user"
	RoleAssistant = "assistant"
	RoleTool      = "tool"
)

// Message is one entry of a conversation's history. History is append-only.
type Message struct {
	// Seq counts a conversation's messages from 1, those that have been erased among
	// them. The store assigns it.
	Seq int64 `json:"seq,omitempty"`
	// Role is who speaks: one of the Role constants, or the handler's own.
	Role string `json:"role"`
	// Content is what was said: text as a rule, but any bytes are kept as is.
	Content string `json:"content"`
	// TaskID is the task whose turn appended the message. The store assigns it.
	TaskID string `json:"task_id,omitempty"`
	// At is when the turn finished. The store assigns it.
	At time.Time `json:"at,omitzero"`
}

// Conversation is what a turn starts from.
type Conversation struct {
	// ID is the conversation's key.
	ID string
	// Version counts the turns that changed the conversation, and its erasures. A turn
	// commits only on the version it ran on.
	Version int64
	// State is the handler's own, as JSON. Nil when no turn has set one.
	State json.RawMessage
	// Length is the number of messages in the history.
	Length int64
	// Erased is the number of messages that came before them and have been erased.
	Erased int64
	// Tail holds the newest messages, oldest first: all Length of them or fewer.
	Tail []Message
}

// TailLength is how many messages a snapshot of a conversation carries along.
// Older ones are read from PostgreSQL when a turn asks for them.
const TailLength = 64

// Last is the sequence number of the newest message, 0 when there has been none.
func (c *Conversation) Last() int64 { return c.Erased + c.Length }

// After returns the conversation as it is once a turn on it has committed.
func (c Conversation) After(task *Task, e *Effects, at time.Time) Conversation {
	c.Version++
	// As PostgreSQL keeps it: a turn must see the same whether the conversation
	// comes from there or was carried along.
	at = at.UTC().Truncate(time.Microsecond)
	if e.State != nil {
		c.State = e.State
	}
	tail := make([]Message, 0, len(c.Tail)+len(e.Messages))
	tail = append(tail, c.Tail...)
	for i, m := range e.Messages {
		m.Seq, m.TaskID, m.At = c.Last()+int64(i)+1, task.ID, at
		tail = append(tail, m)
	}
	c.Length += int64(len(e.Messages))
	if extra := len(tail) - TailLength; extra > 0 {
		tail = slices.Clone(tail[extra:])
	}
	c.Tail = tail
	return c
}
