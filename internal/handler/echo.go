package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"millrace"
)

// Echo appends the payload as a user message and the same bytes as the answer. Of
// several tasks that a turn answers, the answer has a line for each and the result
// is a list. The conversation's state counts its turns.
type Echo struct{}

type echoState struct {
	Turns int64 `json:"turns"`
}

// Handle implements [millrace.Handler].
func (Echo) Handle(_ context.Context, turn *millrace.Turn) error {
	payload := turn.Task().Payload
	messages := []millrace.Message{{Role: millrace.RoleUser, Content: string(payload)}}
	answer, result := string(payload), asJSON(payload)
	if others := turn.Coalesced(); len(others) > 0 {
		results := []any{result}
		for _, task := range others {
			messages = append(messages, millrace.Message{Role: millrace.RoleUser, Content: string(task.Payload)})
			answer += "\n" + string(task.Payload)
			results = append(results, asJSON(task.Payload))
		}
		result = results
	}
	if turn.Task().Conversation != "" {
		var state echoState
		if err := turn.DecodeState(&state); err != nil {
			return millrace.Permanent(err)
		}
		state.Turns++
		if err := turn.SetState(state); err != nil {
			return err
		}
		if err := turn.Append(append(messages, millrace.Message{Role: millrace.RoleAssistant, Content: answer})...); err != nil {
			return err
		}
	}
	return turn.Result(result)
}

// tasks returns all that a turn is to answer, its own task first.
func tasks(turn *millrace.Turn) []*millrace.Task {
	return append([]*millrace.Task{turn.Task()}, turn.Coalesced()...)
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
