package handler

import (
	"context"

	"millrace"
	"millrace/llm"
)

// Chatter asks an LLM on behalf of a turn. A *llm.Client is one.
type Chatter interface {
	Chat(ctx context.Context, turn *millrace.Turn, r llm.ChatRequest) (llm.ChatResponse, error)
}

// agentHistory is how many messages of the conversation the agent sends along.
const agentHistory = 40

// Agent sends the conversation to an LLM and appends the answer.
type Agent struct {
	// LLM is who is asked, with its default model.
	LLM Chatter
}

type agentResult struct {
	Text  string `json:"text"`
	Model string `json:"model"`
}

// Handle implements [millrace.Handler].
func (a Agent) Handle(ctx context.Context, turn *millrace.Turn) error {
	var questions []millrace.Message
	for _, task := range tasks(turn) {
		said, err := text(task)
		if err != nil {
			return err
		}
		questions = append(questions, millrace.Message{Role: millrace.RoleUser, Content: said})
	}
	history, err := turn.History(ctx, agentHistory)
	if err != nil {
		return err
	}
	if turn.Task().Conversation != "" {
		// Before the call: a turn that is interrupted keeps what was asked.
		if err := turn.Append(questions...); err != nil {
			return err
		}
	}
	answer, err := a.LLM.Chat(ctx, turn, llm.ChatRequest{Messages: llm.Messages(append(history, questions...)...)})
	if err != nil {
		return err
	}
	if turn.Task().Conversation != "" {
		err := turn.Append(millrace.Message{Role: millrace.RoleAssistant, Content: answer.Content})
		if err != nil {
			return err
		}
	}
	return turn.Result(agentResult{Text: answer.Content, Model: answer.Model})
}
