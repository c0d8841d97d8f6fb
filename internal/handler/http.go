package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"

	"millrace"
	"millrace/llm"
)

// TurnHeader carries the token of a running turn. An agent forwards it to the
// LLM proxy, which charges its calls to the turn.
const TurnHeader = "Millrace-Turn"

// Dependency is what an outage of the handler's address is called.
const Dependency = "handler"

// maxAnswer bounds what a handler may answer.
const maxAnswer = 8 << 20

// Registrar names running turns, so that the LLM proxy can find them.
type Registrar interface {
	// Register returns an unguessable token for a turn, and a function that
	// withdraws it.
	Register(turn *millrace.Turn) (token string, release func())
}

// HTTP posts every turn to a URL, so that a handler can be written in any
// language.
type HTTP struct {
	url    string
	client *http.Client
	turns  Registrar
}

// NewHTTP returns a handler that posts to url. turns may be nil: then no token
// is sent.
func NewHTTP(url string, turns Registrar) *HTTP {
	return &HTTP{
		url: url,
		client: &http.Client{
			Transport: &http.Transport{MaxIdleConnsPerHost: 1000, IdleConnTimeout: 90 * time.Second},
			// A redirected POST would lose its body.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		turns: turns,
	}
}

// Close drops idle connections.
func (h *HTTP) Close() { h.client.CloseIdleConnections() }

// turnRequest is what is posted.
type turnRequest struct {
	Task taskJSON `json:"task"`
	// Coalesced are the further tasks that the answer is for.
	Coalesced    []taskJSON         `json:"coalesced,omitempty"`
	Attempt      int                `json:"attempt"`
	Conversation string             `json:"conversation,omitempty"`
	Version      int64              `json:"version"`
	State        json.RawMessage    `json:"state,omitempty"`
	History      []millrace.Message `json:"history"`
}

type taskJSON struct {
	ID          string            `json:"id"`
	Type        string            `json:"type"`
	Priority    millrace.Priority `json:"priority"`
	Tenant      string            `json:"tenant,omitempty"`
	Source      string            `json:"source,omitempty"`
	Time        time.Time         `json:"time,omitzero"`
	Deadline    time.Time         `json:"deadline,omitzero"`
	Redrive     int               `json:"redrive,omitempty"`
	Attributes  map[string]string `json:"attributes,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	// Payload holds a JSON payload as it is and a text as a string.
	Payload any `json:"payload,omitempty"`
	// PayloadBase64 holds what is neither.
	PayloadBase64 []byte `json:"payload_base64,omitempty"`
}

// turnAnswer is what a 2xx answer may hold. An empty body means none of it.
type turnAnswer struct {
	Messages []struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	} `json:"messages"`
	State  json.RawMessage `json:"state"`
	Events []struct {
		Type  string          `json:"type"`
		Topic string          `json:"topic"`
		Key   string          `json:"key"`
		Data  json.RawMessage `json:"data"`
	} `json:"events"`
	Result json.RawMessage `json:"result"`
}

// Handle implements [millrace.Handler]. A 2xx answer carries the effects; 409,
// 429 and 5xx are tried again, after Retry-After if there is one, and without
// counting an attempt when the LLM proxy has just told the handler that a provider
// is out; any other answer is permanent.
func (h *HTTP) Handle(ctx context.Context, turn *millrace.Turn) error {
	body, err := encodeTurn(ctx, turn)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post turn: %w", err)
	}
	task := turn.Task()
	req.Header.Set("Content-Type", millrace.JSON)
	req.Header.Set("Idempotency-Key", task.ID+"/"+strconv.Itoa(task.Redrive))
	otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(req.Header))
	if h.turns != nil {
		token, release := h.turns.Register(turn)
		defer release()
		req.Header.Set(TurnHeader, token)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		err = fmt.Errorf("post turn: %w", err)
		// A handler that is being restarted has not seen the turn: no attempt of it.
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return millrace.UnavailableDependency(Dependency, err)
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	turn.Reached(Dependency)
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", h.url, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return refusal(turn, resp, answer)
	}
	if len(answer) > maxAnswer {
		return millrace.Permanent(fmt.Errorf("the answer of %s exceeds %d bytes", h.url, maxAnswer))
	}
	return apply(turn, answer)
}

func encodeTurn(ctx context.Context, turn *millrace.Turn) ([]byte, error) {
	task := turn.Task()
	history, err := turn.History(ctx, millrace.TailLength)
	if err != nil {
		return nil, err
	}
	if history == nil {
		history = []millrace.Message{}
	}
	r := turnRequest{
		Task:    encodeTask(task),
		Attempt: turn.Attempt(), Conversation: task.Conversation, Version: turn.Version(),
		State: turn.State(), History: history,
	}
	for _, other := range turn.Coalesced() {
		r.Coalesced = append(r.Coalesced, encodeTask(other))
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, millrace.Permanent(fmt.Errorf("encode turn: %w", err))
	}
	return body, nil
}

func encodeTask(task *millrace.Task) taskJSON {
	out := taskJSON{
		ID: task.ID, Type: task.Type, Priority: task.Priority, Tenant: task.Tenant, Source: task.Source,
		Time: task.Time, Deadline: task.Deadline, Redrive: task.Redrive, Attributes: task.Attributes,
		ContentType: task.ContentType,
	}
	switch payload := asJSON(task.Payload).(type) {
	case []byte:
		out.PayloadBase64 = payload
	default:
		out.Payload = payload
	}
	return out
}

func refusal(turn *millrace.Turn, resp *http.Response, body []byte) error {
	excerpt := strings.ToValidUTF8(string(body[:min(len(body), 500)]), "\uFFFD")
	err := fmt.Errorf("handler answered %s: %s", resp.Status, strings.TrimSpace(excerpt))
	switch code := resp.StatusCode; {
	case code == http.StatusConflict, code == http.StatusTooManyRequests, code >= 500:
		if outage := turn.Outage(); outage != nil {
			err = millrace.UnavailableDependency(millrace.DependencyOf(outage), fmt.Errorf("%w, after %w", err, outage))
		}
		if delay := llm.RetryAfter(resp.Header, time.Now()); delay > 0 {
			return millrace.RetryAfter(delay, err)
		}
		return err
	}
	return millrace.Permanent(err)
}

// apply takes an answer's effects into the turn. A malformed answer is
// permanent: the handler would give it again.
func apply(turn *millrace.Turn, body []byte) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	var a turnAnswer
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return millrace.Permanent(fmt.Errorf("decode the handler's answer: %w", err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return millrace.Permanent(errors.New("decode the handler's answer: more than one JSON value"))
	}
	for _, m := range a.Messages {
		if err := turn.Append(millrace.Message{Role: m.Role, Content: m.Content}); err != nil {
			return err
		}
	}
	if given(a.State) {
		if err := turn.SetState(a.State); err != nil {
			return err
		}
	}
	for _, e := range a.Events {
		if err := turn.Emit(millrace.Event{Type: e.Type, Topic: e.Topic, Key: e.Key, Data: e.Data}); err != nil {
			return err
		}
	}
	if given(a.Result) {
		return turn.Result(a.Result)
	}
	return nil
}

// given tells a value from an absent or null field.
func given(raw json.RawMessage) bool { return raw != nil && string(raw) != "null" }
