package llm

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"

	"millrace"
)

func (t Target) chatAnthropic(ctx context.Context, request *ChatRequest, maxTokens int64) (ChatResponse, error) {
	params := anthropic.MessageNewParams{Model: t.Model, MaxTokens: maxTokens}
	for _, m := range request.Messages {
		block := anthropic.NewTextBlock(m.Content)
		switch m.Role {
		case millrace.RoleSystem:
			params.System = append(params.System, anthropic.TextBlockParam{Text: m.Content})
		case millrace.RoleAssistant:
			params.Messages = append(params.Messages, anthropic.NewAssistantMessage(block))
		default:
			params.Messages = append(params.Messages, anthropic.NewUserMessage(block))
		}
	}
	if request.Temperature != nil {
		params.Temperature = anthropic.Float(*request.Temperature)
	}
	var raw *http.Response
	message, err := t.Provider.anthropic.New(ctx, params, anthropicoption.WithResponseInto(&raw))
	if err != nil {
		var e *anthropic.Error
		if errors.As(err, &e) && e.Response != nil {
			return ChatResponse{}, t.NewProviderError(e.StatusCode, e.Response.Header, anthropicMessage(e.RawJSON()))
		}
		if raw != nil && raw.StatusCode >= http.StatusBadRequest {
			// The SDK could not read the error's body.
			return ChatResponse{}, t.NewProviderError(raw.StatusCode, raw.Header, "")
		}
		return ChatResponse{}, err
	}
	if len(message.Content) == 0 && message.StopReason == "" {
		return ChatResponse{}, errors.New("the provider's answer is no message")
	}
	var text strings.Builder
	for _, block := range message.Content {
		text.WriteString(block.Text)
	}
	return ChatResponse{
		ID: message.ID, Provider: t.Provider.name, Model: message.Model,
		Content: text.String(), FinishReason: string(message.StopReason),
		// Cached input is billed otherwise but was sent all the same.
		InputTokens:  message.Usage.InputTokens + message.Usage.CacheCreationInputTokens + message.Usage.CacheReadInputTokens,
		OutputTokens: message.Usage.OutputTokens,
	}, nil
}

// anthropicMessage takes the message out of an error body.
func anthropicMessage(body string) string {
	var envelope struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal([]byte(body), &envelope) == nil && envelope.Error.Message != "" {
		return envelope.Error.Message
	}
	return body
}
