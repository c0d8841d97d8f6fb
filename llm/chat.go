package llm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"millrace"
)

// stepChat is the name of the journal's steps.
const stepChat = "llm.chat"

// Message is one entry of the conversation that a model is sent. The roles are
// millrace.RoleSystem, RoleUser and RoleAssistant.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Messages returns a conversation's history as what a model is sent.
func Messages(history ...millrace.Message) []Message {
	out := make([]Message, len(history))
	for i, m := range history {
		out[i] = Message{Role: m.Role, Content: m.Content}
	}
	return out
}

// ChatRequest asks a model to continue a conversation.
type ChatRequest struct {
	// Model is "name/model", a model of the first provider, or "" for the
	// configured one.
	Model string `json:"model"`
	// Messages is the conversation, oldest first. At least one.
	Messages []Message `json:"messages"`
	// MaxTokens bounds the answer. 0: the provider's own bound, or the client's
	// where the provider wants one.
	MaxTokens int64 `json:"max_tokens,omitempty"`
	// Temperature is the sampling temperature. Nil: the provider's default.
	Temperature *float64 `json:"temperature,omitempty"`
}

// ChatResponse is a model's answer.
type ChatResponse struct {
	ID       string `json:"id,omitempty"`
	Provider string `json:"provider"`
	// Model is what the provider says that answered.
	Model   string `json:"model"`
	Content string `json:"content"`
	// FinishReason is the provider's own word for why the answer ended.
	FinishReason string `json:"finish_reason,omitempty"`
	InputTokens  int64  `json:"input_tokens"`
	OutputTokens int64  `json:"output_tokens"`
}

func (r *ChatRequest) validate() error {
	if len(r.Messages) == 0 {
		return errors.New("messages: want at least one")
	}
	for i, m := range r.Messages {
		switch m.Role {
		case millrace.RoleSystem, millrace.RoleUser, millrace.RoleAssistant:
		default:
			return fmt.Errorf("message %d: role %q: want %s, %s or %s", i, m.Role,
				millrace.RoleSystem, millrace.RoleUser, millrace.RoleAssistant)
		}
	}
	if r.MaxTokens < 0 {
		return fmt.Errorf("max tokens %d: negative", r.MaxTokens)
	}
	return nil
}

// Chat sends a request for a turn, or returns the answer that an earlier run of
// the turn's task has journaled. It waits for the limiter first.
//
// A nil client is that of a worker without providers; it refuses all requests.
//
// The error is permanent when the request can never succeed, and carries a delay
// when the provider asked for one; a handler returns it as it is.
func (c *Client) Chat(ctx context.Context, turn *millrace.Turn, request ChatRequest) (ChatResponse, error) {
	if c == nil {
		return ChatResponse{}, millrace.Permanent(errors.New("chat: no LLM provider is configured: set MILLRACE_LLM_<NAME>_BASE_URL, or MILLRACE_LLM_OPENAI_API_KEY"))
	}
	target, err := c.Target(request.Model)
	if err != nil {
		return ChatResponse{}, millrace.Permanent(fmt.Errorf("chat: %w", err))
	}
	if err := request.validate(); err != nil {
		return ChatResponse{}, millrace.Permanent(fmt.Errorf("chat: %w", err))
	}
	request.Model = target.Provider.name + "/" + target.Model
	body, err := json.Marshal(request)
	if err != nil {
		return ChatResponse{}, millrace.Permanent(fmt.Errorf("chat: encode request: %w", err))
	}
	output, err := turn.Step(ctx, stepChat, body, func(ctx context.Context) (millrace.StepResult, error) {
		return c.chat(ctx, turn, target, &request, len(body))
	})
	if err != nil {
		return ChatResponse{}, fmt.Errorf("chat: %w", err)
	}
	var response ChatResponse
	if err := json.Unmarshal(output, &response); err != nil {
		return ChatResponse{}, fmt.Errorf("chat: decode journaled answer: %w", err)
	}
	return response, nil
}

func (c *Client) chat(ctx context.Context, turn *millrace.Turn, t Target, request *ChatRequest, size int) (millrace.StepResult, error) {
	maxTokens := request.MaxTokens
	if maxTokens == 0 && t.Provider.kind == Anthropic {
		maxTokens = c.maxTokens
	}
	callCtx, attempt, err := c.Begin(ctx, turn, t, size, maxTokens)
	if err != nil {
		return millrace.StepResult{}, err
	}
	var response ChatResponse
	switch t.Provider.kind {
	case OpenAI:
		response, err = t.chatOpenAI(callCtx, request, maxTokens)
	case Anthropic:
		response, err = t.chatAnthropic(callCtx, request, maxTokens)
	}
	if err != nil {
		return millrace.StepResult{}, attempt.Fail(ctx, err)
	}
	usage := attempt.Succeed(ctx, Answer{
		ID: response.ID, Model: response.Model, FinishReason: response.FinishReason,
		InputTokens: response.InputTokens, OutputTokens: response.OutputTokens,
		Unmeasured: response.InputTokens == 0 && response.OutputTokens == 0,
	})
	output, err := json.Marshal(response)
	if err != nil {
		return millrace.StepResult{}, fmt.Errorf("encode answer: %w", err)
	}
	return millrace.StepResult{Output: output, Usage: usage}, nil
}
