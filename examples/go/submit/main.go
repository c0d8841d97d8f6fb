// Command submit sends a task over HTTP and prints what came of it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

var api = cmp.Or(os.Getenv("MILLRACE_URL"), "http://127.0.0.1:8080")

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	result, err := submit(ctx, "ticket-1007/message-1",
		`{"conversation": "ticket-1007", "type": "chat.message", "payload": {"text": "Where is my order?"}}`)
	if err != nil {
		fmt.Fprintln(os.Stderr, "submit:", err)
		os.Exit(1)
	}
	fmt.Println(string(result))
}

//snippet:submit

// submit sends a task and returns its result. Under one key, a repeat is the
// same task.
func submit(ctx context.Context, key, task string) (json.RawMessage, error) {
	body, err := call(ctx, http.MethodPost, "/v1/tasks", key, task)
	for err == nil {
		var t struct {
			ID     string `json:"task_id"`
			Status string `json:"status"`
		}
		if err = json.Unmarshal(body, &t); err != nil {
			break
		}
		switch t.Status {
		case "completed", "failed", "cancelled":
			return body, nil
		}
		body, err = call(ctx, http.MethodGet, "/v1/tasks/"+t.ID+"?wait=30s", "", "")
	}
	return nil, err
}

// call asks the API until it has answered. What passes (429, 5xx, a lost
// connection) is tried again until the context ends.
func call(ctx context.Context, method, path, key, body string) ([]byte, error) {
	for wait := time.Second; ; wait *= 2 {
		answer, after, err := try(ctx, method, path, key, body)
		if err == nil || after < 0 {
			return answer, err
		}
		select {
		case <-time.After(cmp.Or(after, wait)):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// try asks once. After is how long to wait until the next time, 0 when the API
// does not say, and negative when another time is no use.
func try(ctx context.Context, method, path, key, body string) (answer []byte, after time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, method, api+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return nil, -1, err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err = io.ReadAll(resp.Body)
	switch {
	case err != nil || resp.StatusCode < 300:
		return answer, 0, err
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return nil, time.Duration(seconds) * time.Second, fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return nil, -1, fmt.Errorf("%s: %s", resp.Status, answer) // problem+json: says what is wrong
}

//snippet:end
