package millrace

import "time"

// Erasure is a conversation whose content has been erased, or is about to be. It is
// gone for readers and turns at once; the rows go one batch after another.
type Erasure struct {
	ConversationID string    `json:"conversation_id" doc:"The conversation's id"`
	ErasedAt       time.Time `json:"erased_at" doc:"What was there by then is erased"`
	// Done says that nothing is left to delete.
	Done bool `json:"done" doc:"Whether nothing is left to delete"`
}

// Erased is word of an erasure, for those who may hold a copy of the conversation:
// every version below this one has to go.
type Erased struct {
	Conversation string
	Version      int64
}
