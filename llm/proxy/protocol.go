package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"millrace"
	"millrace/llm"
)

// protocol is what the providers' APIs differ in.
type protocol interface {
	kind() llm.Kind
	// path is where the provider has the call, under its base URL.
	path() string
	// step is the name of the journal's steps.
	step() string
	// answer checks a whole answer and describes it.
	answer(body []byte) (llm.Answer, error)
	// event takes an event of a stream into the state. hide says that the event
	// tells the usage and nothing else.
	event(data []byte, st *streamState) (hide bool, err error)
	writeError(w http.ResponseWriter, status int, message string)
}

// streamState is what a stream has told so far.
type streamState struct {
	answer   llm.Answer
	complete bool
}

type openAI struct{}

type openAIUsage struct {
	PromptTokens     int64 `json:"prompt_tokens"`
	CompletionTokens int64 `json:"completion_tokens"`
}

type openAIAnswer struct {
	ID      string `json:"id"`
	Model   string `json:"model"`
	Choices []struct {
		FinishReason string `json:"finish_reason"`
	} `json:"choices"`
	Usage *openAIUsage    `json:"usage"`
	Error json.RawMessage `json:"error"`
}

func (openAI) kind() llm.Kind { return llm.OpenAI }
func (openAI) path() string   { return "chat/completions" }
func (openAI) step() string   { return "proxy.chat.completions" }

func (openAI) answer(body []byte) (llm.Answer, error) {
	var a openAIAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		return llm.Answer{}, err
	}
	if len(a.Choices) == 0 {
		return llm.Answer{}, errors.New("no choices")
	}
	answer := llm.Answer{ID: a.ID, Model: a.Model, FinishReason: a.Choices[0].FinishReason, Unmeasured: a.Usage == nil}
	if a.Usage != nil {
		answer.InputTokens, answer.OutputTokens = a.Usage.PromptTokens, a.Usage.CompletionTokens
	}
	return answer, nil
}

func (openAI) event(data []byte, st *streamState) (bool, error) {
	if bytes.Equal(data, []byte("[DONE]")) {
		st.complete = true
		return false, nil
	}
	var a openAIAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return false, fmt.Errorf("malformed event: %w", err)
	}
	if len(a.Error) > 0 && !bytes.Equal(a.Error, []byte("null")) {
		return false, errors.New("the provider ended it with an error")
	}
	if a.ID != "" {
		st.answer.ID, st.answer.Model = a.ID, a.Model
	}
	if len(a.Choices) > 0 && a.Choices[0].FinishReason != "" {
		st.answer.FinishReason = a.Choices[0].FinishReason
	}
	if a.Usage == nil {
		return false, nil
	}
	st.answer.Unmeasured = false
	st.answer.InputTokens, st.answer.OutputTokens = a.Usage.PromptTokens, a.Usage.CompletionTokens
	return len(a.Choices) == 0, nil
}

func (openAI) writeError(w http.ResponseWriter, status int, message string) {
	kind, code := "invalid_request_error", any(nil)
	switch {
	case status == http.StatusUnauthorized:
		code = "millrace_turn_required"
	case status >= http.StatusInternalServerError:
		kind = "server_error"
	}
	writeJSON(w, status, map[string]any{"error": map[string]any{
		"message": message, "type": kind, "param": nil, "code": code,
	}})
}

type anthropic struct{}

type anthropicUsage struct {
	InputTokens              int64 `json:"input_tokens"`
	CacheCreationInputTokens int64 `json:"cache_creation_input_tokens"`
	CacheReadInputTokens     int64 `json:"cache_read_input_tokens"`
	OutputTokens             int64 `json:"output_tokens"`
}

// input counts cached tokens too: they are billed otherwise, but were sent.
func (u *anthropicUsage) input() int64 {
	return u.InputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens
}

type anthropicAnswer struct {
	Type       string          `json:"type"`
	ID         string          `json:"id"`
	Model      string          `json:"model"`
	StopReason string          `json:"stop_reason"`
	Usage      *anthropicUsage `json:"usage"`
}

func (anthropic) kind() llm.Kind { return llm.Anthropic }
func (anthropic) path() string   { return "v1/messages" }
func (anthropic) step() string   { return "proxy.messages" }

func (anthropic) answer(body []byte) (llm.Answer, error) {
	var a anthropicAnswer
	if err := json.Unmarshal(body, &a); err != nil {
		return llm.Answer{}, err
	}
	if a.Type != "message" {
		return llm.Answer{}, fmt.Errorf("type %q, want message", a.Type)
	}
	answer := llm.Answer{ID: a.ID, Model: a.Model, FinishReason: a.StopReason, Unmeasured: a.Usage == nil}
	if a.Usage != nil {
		answer.InputTokens, answer.OutputTokens = a.Usage.input(), a.Usage.OutputTokens
	}
	return answer, nil
}

func (anthropic) event(data []byte, st *streamState) (bool, error) {
	var e struct {
		Type    string          `json:"type"`
		Message anthropicAnswer `json:"message"`
		Delta   struct {
			StopReason string `json:"stop_reason"`
		} `json:"delta"`
		Usage *anthropicUsage `json:"usage"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return false, fmt.Errorf("malformed event: %w", err)
	}
	switch e.Type {
	case "error":
		return false, errors.New("the provider ended it with an error")
	case "message_start":
		st.answer.ID, st.answer.Model = e.Message.ID, e.Message.Model
		if u := e.Message.Usage; u != nil {
			st.answer.InputTokens = u.input()
		}
	case "message_delta":
		st.answer.FinishReason = e.Delta.StopReason
		if e.Usage != nil { // cumulative
			st.answer.OutputTokens, st.answer.Unmeasured = e.Usage.OutputTokens, false
		}
	case "message_stop":
		st.complete = true
	}
	return false, nil
}

func (anthropic) writeError(w http.ResponseWriter, status int, message string) {
	kind := "invalid_request_error"
	switch {
	case status == http.StatusUnauthorized:
		kind = "authentication_error"
	case status == http.StatusRequestEntityTooLarge:
		kind = "request_too_large"
	case status >= http.StatusInternalServerError:
		kind = "api_error"
	}
	writeJSON(w, status, map[string]any{"type": "error", "error": map[string]any{"type": kind, "message": message}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // strings alone: cannot happen
		http.Error(w, http.StatusText(status), status)
		return
	}
	w.Header().Set("Content-Type", millrace.JSON)
	w.WriteHeader(status)
	_, _ = w.Write(b) // the agent may be gone
}
