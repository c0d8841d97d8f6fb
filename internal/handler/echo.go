package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"millrace"
)

// Echo appends the payload as a user message and the same bytes as the answer.
// The conversation's state counts its turns.
type Echo struct{}

type echoState struct {
	Turns int64 `json:"turns"`
}

// Handle implements [millrace.Handler].
func (Echo) Handle(_ context.Context, turn *millrace.Turn) error {
	payload := turn.Task().Payload
	if turn.Task().Conversation != "" {
		var state echoState
		if err := turn.DecodeState(&state); err != nil {
			return millrace.Permanent(err)
		}
		state.Turns++
		if err := turn.SetState(state); err != nil {
			return err
		}
		err := turn.Append(
			millrace.Message{Role: millrace.RoleUser, Content: string(payload)},
			millrace.Message{Role: millrace.RoleAssistant, Content: string(payload)},
		)
		if err != nil {
			return err
		}
	}
	return turn.Result(asJSON(payload))
}

// asJSON returns bytes as what JSON can carry: themselves when they are JSON, a
// string when they are text, or else base64 in a string.
func asJSON(b []byte) any {
	switch {
	case utf8.Valid(b) && json.Valid(b):
		return json.RawMessage(b)
	case utf8.Valid(b):
		return string(b)
	}
	return b
}

// text returns what a user said: the field "text" of a JSON object, or the
// payload itself.
func text(task *millrace.Task) (string, error) {
	var body struct {
		Text *string `json:"text"`
	}
	if json.Unmarshal(task.Payload, &body) == nil && body.Text != nil {
		return *body.Text, nil
	}
	if !utf8.Valid(task.Payload) {
		return "", millrace.Permanent(fmt.Errorf("payload of %d bytes is neither text nor JSON", len(task.Payload)))
	}
	return string(task.Payload), nil
}
