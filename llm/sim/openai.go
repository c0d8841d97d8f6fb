package sim

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// openAI is the protocol of https://platform.openai.com/docs/api-reference/chat.
type openAI struct{}

type object = map[string]any

func (openAI) kind() string { return "openai" }

func (openAI) key(r *http.Request) string {
	key, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return key
}

func (openAI) parse(body []byte) (call, error) {
	var request struct {
		Model               string    `json:"model"`
		Messages            []message `json:"messages"`
		Stream              bool      `json:"stream"`
		MaxTokens           int64     `json:"max_tokens"`
		MaxCompletionTokens int64     `json:"max_completion_tokens"`
		StreamOptions       struct {
			IncludeUsage bool `json:"include_usage"`
		} `json:"stream_options"`
	}
	if err := decode(body, &request); err != nil {
		return call{}, err
	}
	c := call{
		model: request.Model, stream: request.Stream, wantUsage: request.StreamOptions.IncludeUsage,
		maxTokens: max(request.MaxTokens, request.MaxCompletionTokens, 0),
	}
	return c, c.read("", request.Messages)
}

func (openAI) writeError(w http.ResponseWriter, e apiError) {
	var code any
	switch e.status {
	case http.StatusTooManyRequests:
		code = "rate_limit_exceeded"
	case http.StatusUnauthorized:
		e.code, code = "invalid_request_error", "invalid_api_key"
	}
	writeJSON(w, e.status, object{"error": object{"message": e.message, "type": e.code, "param": nil, "code": code}}, false)
}

func (openAI) writeLimits(h http.Header, st standing) {
	set := func(what string, limit, used int64, reset time.Time) {
		if limit == 0 {
			return
		}
		h.Set("x-ratelimit-limit-"+what, strconv.FormatInt(limit, 10))
		h.Set("x-ratelimit-remaining-"+what, strconv.FormatInt(st.remaining(limit, used), 10))
		h.Set("x-ratelimit-reset-"+what, reset.Sub(st.now).Round(time.Millisecond).String())
	}
	set("requests", st.limits.RequestsPerMinute, st.requests, st.requestReset)
	set("tokens", st.limits.TokensPerMinute, st.tokens, st.tokenReset)
	if !st.retryAt.IsZero() {
		h.Set("retry-after", strconv.FormatInt(st.retryAfter(), 10))
		h.Set("retry-after-ms", strconv.FormatInt(max(st.retryAt.Sub(st.now), 0).Milliseconds()+1, 10))
	}
}

func (c *call) openAIFinish() string {
	if c.truncated {
		return "length"
	}
	return "stop"
}

func (c *call) openAIUsage() object {
	return object{"prompt_tokens": c.input, "completion_tokens": c.output, "total_tokens": c.input + c.output}
}

func (openAI) answer(c *call) any {
	return object{
		"id": "chatcmpl-" + c.id, "object": "chat.completion", "created": c.created.Unix(), "model": c.model,
		"choices": []object{{
			"index":         0,
			"message":       object{"role": "assistant", "content": c.text(), "refusal": nil},
			"logprobs":      nil,
			"finish_reason": c.openAIFinish(),
		}},
		"usage": c.openAIUsage(),
	}
}

func (openAI) events(c *call) []event {
	chunk := func(choices []object) object {
		o := object{
			"id": "chatcmpl-" + c.id, "object": "chat.completion.chunk", "created": c.created.Unix(), "model": c.model,
			"choices": choices,
		}
		if c.wantUsage {
			o["usage"] = nil
		}
		return o
	}
	choice := func(delta object, finish any) []object {
		return []object{{"index": 0, "delta": delta, "logprobs": nil, "finish_reason": finish}}
	}
	events := []event{{data: chunk(choice(object{"role": "assistant", "content": ""}, nil))}}
	for _, piece := range c.pieces {
		events = append(events, event{data: chunk(choice(object{"content": piece}, nil))})
	}
	events = append(events, event{data: chunk(choice(object{}, c.openAIFinish()))})
	if c.wantUsage {
		last := chunk([]object{})
		last["usage"] = c.openAIUsage()
		events = append(events, event{data: last})
	}
	return append(events, event{data: "[DONE]"})
}

func (s *Simulator) serveModels(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, object{
		"object": "list",
		"data":   []object{{"id": "sim", "object": "model", "created": 0, "owned_by": "millrace"}},
	}, false)
}
