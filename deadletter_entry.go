package millrace

import "time"

// DeadLetterEntry is a dead letter as the store lists it: what was given up on,
// why, and where in the log it lies.
type DeadLetterEntry struct {
	// ID orders the list: later dead letters have higher ids.
	ID             int64     `json:"id"`
	TaskID         string    `json:"task_id"`
	Redrive        int       `json:"redrive,omitempty"`
	ConversationID string    `json:"conversation_id,omitempty"`
	TaskType       string    `json:"task_type"`
	Reason         string    `json:"reason"`
	Detail         string    `json:"detail,omitempty"`
	Attempts       int       `json:"attempts"`
	Topic          string    `json:"topic"`
	Partition      int32     `json:"partition"`
	Offset         int64     `json:"offset"`
	At             time.Time `json:"at"`
}
