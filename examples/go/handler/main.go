// Command handler is a worker with a handler of its own: an agent that answers
// with the whole conversation in mind.
//
//snippet:handler
package main

import (
	"context"
	"errors"

	"millrace"
	"millrace/llm"
	"millrace/worker"
)

func main() { worker.Main(millrace.HandlerFunc(answer)) }

func answer(ctx context.Context, turn *millrace.Turn) error {
	var payload struct{ Text string }
	history, err := turn.History(ctx, 40)
	if err = errors.Join(err, turn.Decode(&payload)); err != nil {
		return err
	}
	question := millrace.Message{Role: millrace.RoleUser, Content: payload.Text}
	request := llm.ChatRequest{Messages: llm.Messages(append(history, question)...)}
	reply, err := worker.LLM(ctx).Chat(ctx, turn, request) // journaled, and within the limits of all workers
	if err != nil {
		return err // tried again with backoff
	}
	err = turn.Append(question, millrace.Message{Role: millrace.RoleAssistant, Content: reply.Content})
	return errors.Join(err, turn.Result(map[string]string{"text": reply.Content}))
}

//snippet:end
