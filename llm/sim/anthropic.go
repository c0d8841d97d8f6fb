package sim

import (
	"errors"
	"net/http"
	"strconv"
	"time"
)

// anthropic is the protocol of https://docs.anthropic.com/en/api/messages.
type anthropic struct{}

func (anthropic) kind() string { return "anthropic" }

func (anthropic) key(r *http.Request) string {
	if key := r.Header.Get("X-Api-Key"); key != "" {
		return key
	}
	return openAI{}.key(r)
}

func (anthropic) parse(body []byte) (call, error) {
	var request struct {
		Model     string    `json:"model"`
		System    content   `json:"system"`
		Messages  []message `json:"messages"`
		Stream    bool      `json:"stream"`
		MaxTokens int64     `json:"max_tokens"`
	}
	if err := decode(body, &request); err != nil {
		return call{}, err
	}
	c := call{model: request.Model, stream: request.Stream, wantUsage: true, maxTokens: request.MaxTokens}
	if err := c.read(string(request.System), request.Messages); err != nil {
		return c, err
	}
	if c.maxTokens < 1 {
		return c, errors.New("max_tokens: Field required")
	}
	return c, nil
}

func (anthropic) writeError(w http.ResponseWriter, e apiError) {
	kind := map[int]string{
		http.StatusBadRequest:          "invalid_request_error",
		http.StatusUnauthorized:        "authentication_error",
		http.StatusTooManyRequests:     "rate_limit_error",
		http.StatusInternalServerError: "api_error",
	}[e.status]
	writeJSON(w, e.status, object{"type": "error", "error": object{"type": kind, "message": e.message}}, false)
}

func (anthropic) writeLimits(h http.Header, st standing) {
	set := func(what string, limit, used int64, reset time.Time) {
		if limit == 0 {
			return
		}
		h.Set("anthropic-ratelimit-"+what+"-limit", strconv.FormatInt(limit, 10))
		h.Set("anthropic-ratelimit-"+what+"-remaining", strconv.FormatInt(st.remaining(limit, used), 10))
		h.Set("anthropic-ratelimit-"+what+"-reset", reset.UTC().Format(time.RFC3339))
	}
	set("requests", st.limits.RequestsPerMinute, st.requests, st.requestReset)
	set("tokens", st.limits.TokensPerMinute, st.tokens, st.tokenReset)
	if !st.retryAt.IsZero() {
		h.Set("retry-after", strconv.FormatInt(st.retryAfter(), 10))
	}
}

func (c *call) anthropicStop() string {
	if c.truncated {
		return "max_tokens"
	}
	return "end_turn"
}

func (c *call) anthropicMessage(content []object, stop any, output int64) object {
	return object{
		"id": "msg_" + c.id, "type": "message", "role": "assistant", "model": c.model,
		"content": content, "stop_reason": stop, "stop_sequence": nil,
		"usage": object{"input_tokens": c.input, "output_tokens": output},
	}
}

func (anthropic) answer(c *call) any {
	return c.anthropicMessage([]object{{"type": "text", "text": c.text()}}, c.anthropicStop(), c.output)
}

func (anthropic) events(c *call) []event {
	named := func(name string, o object) event {
		o["type"] = name
		return event{name: name, data: o}
	}
	events := []event{
		named("message_start", object{"message": c.anthropicMessage([]object{}, nil, 1)}),
		named("content_block_start", object{"index": 0, "content_block": object{"type": "text", "text": ""}}),
		named("ping", object{}),
	}
	for _, piece := range c.pieces {
		events = append(events, named("content_block_delta", object{"index": 0, "delta": object{"type": "text_delta", "text": piece}}))
	}
	return append(events,
		named("content_block_stop", object{"index": 0}),
		named("message_delta", object{
			"delta": object{"stop_reason": c.anthropicStop(), "stop_sequence": nil},
			"usage": object{"output_tokens": c.output},
		}),
		named("message_stop", object{}),
	)
}
