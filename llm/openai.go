package llm

import (
	"context"
	"errors"
	"net/http"

	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"

	"millrace"
)

func (t Target) chatOpenAI(ctx context.Context, request *ChatRequest, maxTokens int64) (ChatResponse, error) {
	params := openai.ChatCompletionNewParams{Model: t.Model}
	for _, m := range request.Messages {
		switch m.Role {
		case millrace.RoleSystem:
			params.Messages = append(params.Messages, openai.SystemMessage(m.Content))
		case millrace.RoleAssistant:
			params.Messages = append(params.Messages, openai.AssistantMessage(m.Content))
		default:
			params.Messages = append(params.Messages, openai.UserMessage(m.Content))
		}
	}
	if maxTokens > 0 {
		params.MaxCompletionTokens = openai.Int(maxTokens)
	}
	if request.Temperature != nil {
		params.Temperature = openai.Float(*request.Temperature)
	}
	var raw *http.Response
	completion, err := t.Provider.openai.New(ctx, params, openaioption.WithResponseInto(&raw))
	if err != nil {
		var e *openai.Error
		if errors.As(err, &e) && e.Response != nil {
			return ChatResponse{}, t.NewProviderError(e.StatusCode, e.Response.Header, e.Message)
		}
		if raw != nil && raw.StatusCode >= http.StatusBadRequest {
			// The SDK could not read the error's body.
			return ChatResponse{}, t.NewProviderError(raw.StatusCode, raw.Header, "")
		}
		return ChatResponse{}, err
	}
	if len(completion.Choices) == 0 {
		return ChatResponse{}, errors.New("the provider's answer has no choices")
	}
	choice := completion.Choices[0]
	return ChatResponse{
		ID: completion.ID, Provider: t.Provider.name, Model: completion.Model,
		Content: choice.Message.Content, FinishReason: choice.FinishReason,
		InputTokens: completion.Usage.PromptTokens, OutputTokens: completion.Usage.CompletionTokens,
	}, nil
}
