package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"millrace"
	"millrace/llm"
)

// upstreamError is a provider's error answer, to be passed on as it is.
type upstreamError struct {
	status int
	header http.Header
	body   []byte
	err    *llm.ProviderError
}

func (e *upstreamError) Error() string { return e.err.Error() }

func (e *upstreamError) Unwrap() error { return e.err }

// output is the answer to the agent.
type output struct {
	w      http.ResponseWriter
	stream bool
	begun  bool
	// last is the event that completes a stream. The agent gets it once the
	// answer is journaled: an answer that it can act on is one that will be
	// replayed.
	last []byte
}

// write writes a whole answer. The agent may be gone; there is nobody to tell.
func (o *output) write(body []byte) {
	if o.stream {
		o.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		o.w.Header().Set("Cache-Control", "no-cache")
	} else {
		o.w.Header().Set("Content-Type", millrace.JSON)
	}
	o.begun = true
	_, _ = o.w.Write(body)
}

func (o *output) writeChunk(chunk []byte) error {
	if !o.begun {
		o.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		o.w.Header().Set("Cache-Control", "no-cache")
		o.begun = true
	}
	if _, err := o.w.Write(chunk); err != nil {
		return fmt.Errorf("write to the agent: %w", err)
	}
	if err := http.NewResponseController(o.w).Flush(); err != nil {
		return fmt.Errorf("write to the agent: %w", err)
	}
	return nil
}

// call waits for its grant and calls the provider.
func (p *Proxy) call(ctx context.Context, c *call, out *output) (millrace.StepResult, error) {
	callCtx, attempt, err := p.client.Begin(ctx, c.turn, c.target, len(c.upstream), c.maxTokens)
	if err != nil {
		return millrace.StepResult{}, c.noteOutage(err)
	}
	body, answer, err := c.send(callCtx, out)
	if err != nil {
		return millrace.StepResult{}, c.noteOutage(attempt.Fail(ctx, err))
	}
	return millrace.StepResult{Output: body, Usage: attempt.Succeed(ctx, answer)}, nil
}

// noteOutage keeps an outage in the turn, whose handler can only say that it has
// failed.
func (c *call) noteOutage(err error) error {
	if millrace.DependencyOf(err) != "" {
		c.turn.Unreached(err)
	}
	return err
}

func (c *call) send(ctx context.Context, out *output) ([]byte, llm.Answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(c.upstream))
	if err != nil {
		return nil, llm.Answer{}, fmt.Errorf("make request: %w", err)
	}
	copyHeaders(request.Header, c.header, requestHeaders)
	response, err := c.target.Provider.Do(request, c.api.path())
	if err != nil {
		return nil, llm.Answer{}, err
	}
	defer func() { _ = response.Body.Close() }()
	limited := io.LimitReader(response.Body, maxAnswer)
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(limited) // what there is of it
		return nil, llm.Answer{}, c.upstreamError(response, body)
	}
	copyHeaders(out.w.Header(), response.Header, answerHeaders)
	if c.stream {
		return c.readStream(limited, out)
	}
	body, err := io.ReadAll(limited)
	if err != nil {
		return nil, llm.Answer{}, fmt.Errorf("read answer: %w", err)
	}
	answer, err := c.api.answer(body)
	if err != nil {
		return nil, llm.Answer{}, fmt.Errorf("the provider's answer is malformed: %w", err)
	}
	return body, answer, nil
}

func (c *call) upstreamError(response *http.Response, body []byte) error {
	var envelope struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	message := string(body)
	if json.Unmarshal(body, &envelope) == nil && envelope.Error.Message != "" {
		message = envelope.Error.Message
	}
	status := response.StatusCode
	if status < http.StatusBadRequest {
		status = http.StatusBadGateway // a redirect that must not be followed, say
	}
	return &upstreamError{
		status: status, header: response.Header.Clone(), body: body,
		err: c.target.NewProviderError(response.StatusCode, response.Header, message),
	}
}

// readStream passes a stream on, event by event but for the last, and returns
// all of it.
func (c *call) readStream(body io.Reader, out *output) ([]byte, llm.Answer, error) {
	var sent bytes.Buffer
	st := streamState{answer: llm.Answer{Unmeasured: true}}
	reader := bufio.NewReader(body)
	for {
		raw, data, err := readEvent(reader)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, llm.Answer{}, fmt.Errorf("read stream: %w", err)
		}
		hide := false
		if len(data) > 0 {
			if hide, err = c.api.event(data, &st); err != nil {
				// Pass the provider's error on; it is what the agent's SDK understands.
				if json.Valid(data) {
					err = errors.Join(err, out.writeChunk(raw))
				}
				return nil, llm.Answer{}, fmt.Errorf("stream: %w", err)
			}
		}
		if hide && c.hideUsage {
			continue
		}
		sent.Write(raw)
		if st.complete {
			out.last = raw
			return sent.Bytes(), st.answer, nil
		}
		if err := out.writeChunk(raw); err != nil {
			return nil, llm.Answer{}, err
		}
	}
}

// readEvent returns an event of a stream as it came, and its data (see the HTML
// standard, section 9.2).
func readEvent(r *bufio.Reader) (raw, data []byte, err error) {
	for {
		line, err := r.ReadBytes('\n')
		raw = append(raw, line...)
		// The last event may lack its empty line.
		if err != nil && (!errors.Is(err, io.EOF) || len(line) == 0 && data == nil) {
			return nil, nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return raw, data, nil
		}
		if value, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(value, []byte(" "))...)
		}
	}
}
