package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"millrace"
	"millrace/internal/settings"
)

// api talks to ingest over HTTP.
type api struct {
	url    string
	shown  string // url, without what may be secret in it
	client *http.Client
}

func newAPI(url string) *api {
	return &api{url: url, shown: settings.MaskURL(url), client: &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}}
}

func (a *api) close() { a.client.CloseIdleConnections() }

const (
	// pollWait is how long one request waits for a task.
	pollWait = 30 * time.Second
	// maxAnswer bounds what is read of one answer.
	maxAnswer = 256 << 20
	ndjson    = "application/x-ndjson"
)

// problem is an error of the API (RFC 9457).
type problem struct {
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
	Status int    `json:"status"`

	after time.Duration // when to try again
}

func (p *problem) Error() string {
	text := fmt.Sprintf("%d %s", p.Status, http.StatusText(p.Status))
	switch {
	case p.Detail != "":
		text += ": " + p.Detail
	case p.Title != "":
		text += ": " + p.Title
	}
	if p.Hint != "" {
		text += " (" + p.Hint + ")"
	}
	return text
}

// do makes one request and returns headers and body of a 2xx answer. Other
// answers are a problem.
func (a *api) do(ctx context.Context, method, path, contentType, idempotencyKey string, body []byte) (http.Header, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		request.Header.Set("Content-Type", contentType)
	}
	if idempotencyKey != "" {
		request.Header.Set("Idempotency-Key", idempotencyKey)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, nil, fmt.Errorf("API at %s (MILLRACE_URL): %w", a.shown, cause(ctx, err))
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, nil, fmt.Errorf("read answer of %s: %w", a.shown, cause(ctx, err))
	}
	if response.StatusCode >= 200 && response.StatusCode < 300 {
		return response.Header, answer, nil
	}
	p := &problem{}
	if json.Unmarshal(answer, p) != nil {
		p.Detail = string(answer[:min(len(answer), 200)])
	}
	p.Status, p.after = response.StatusCode, retryAfter(response.Header)
	return response.Header, nil, p
}

// cause replaces what an ended context says by why it has ended.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil {
		return time.Second
	}
	return time.Duration(max(seconds, 1)) * time.Second
}

// refused returns when to send again what the API did not take because too much
// is waiting: nothing has been done with it. After other errors that is not
// known, and sending again might double it.
func refused(err error) (after time.Duration, ok bool) {
	var p *problem
	if errors.As(err, &p) && p.Status == http.StatusTooManyRequests {
		return p.after, true
	}
	return 0, false
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// submit sends one task and returns its id.
func (a *api) submit(ctx context.Context, body []byte, idempotencyKey string) (id string, err error) {
	for {
		_, answer, err := a.do(ctx, http.MethodPost, "/v1/tasks", millrace.JSON, idempotencyKey, body)
		if after, again := refused(err); again {
			if err := pause(ctx, after); err != nil {
				return "", err
			}
			continue
		}
		if err != nil {
			return "", err
		}
		var accepted struct {
			TaskID string `json:"task_id"`
		}
		if err := json.Unmarshal(answer, &accepted); err != nil || accepted.TaskID == "" {
			return "", fmt.Errorf("the API at %s gave no task id; is it a Millrace?", a.shown)
		}
		return accepted.TaskID, nil
	}
}

// wait returns the result of a task once it is final, also as it came.
func (a *api) wait(ctx context.Context, id string) (millrace.TaskResult, []byte, error) {
	path := "/v1/tasks/" + url.PathEscape(id) + "?wait=" + pollWait.String()
	for {
		var result millrace.TaskResult
		_, answer, err := a.do(ctx, http.MethodGet, path, "", "", nil)
		if err != nil {
			var p *problem
			if errors.As(err, &p) && (p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable) {
				if err := pause(ctx, p.after); err != nil {
					return result, nil, err
				}
				continue
			}
			return result, nil, err
		}
		if err := json.Unmarshal(answer, &result); err != nil {
			return result, nil, fmt.Errorf("decode result: %w", err)
		}
		if result.Status.Final() {
			return result, answer, nil
		}
		if err := ctx.Err(); err != nil {
			return result, nil, context.Cause(ctx)
		}
	}
}
