//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"millrace"
)

// get asks for a JSON document and expects a status.
func get(url string, want int, into any) error {
	client := http.Client{Timeout: 40 * time.Second, Transport: oneShot}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("GET %s: %s: %s", url, resp.Status, bytes.TrimSpace(body))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("GET %s: %w", url, err)
	}
	return nil
}

// oneShot leaves no connections behind.
var oneShot = &http.Transport{DisableKeepAlives: true}

// problem is an error as the API tells it.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func (p *problem) Error() string { return fmt.Sprintf("%d %s: %s", p.Status, p.Type, p.Detail) }

// taskBody is what is posted.
type taskBody struct {
	Conversation string          `json:"conversation"`
	Type         string          `json:"type"`
	Priority     string          `json:"priority,omitempty"`
	OnBusy       string          `json:"on_busy,omitempty"`
	RunAt        time.Time       `json:"run_at,omitzero"`
	Payload      json.RawMessage `json:"payload"`
}

// submit posts one task. The error is a [*problem] when the API has answered.
func submit(ctx context.Context, client *http.Client, api, idempotencyKey string, task taskBody) (id string, err error) {
	body, err := json.Marshal(task)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, api+"/v1/tasks", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if idempotencyKey != "" {
		req.Header.Set("Idempotency-Key", idempotencyKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusAccepted {
		p := &problem{}
		if err := json.Unmarshal(answer, p); err != nil || p.Type == "" || p.Status != resp.StatusCode ||
			resp.Header.Get("Content-Type") != "application/problem+json" {
			return "", fmt.Errorf("%s without a problem document: %s", resp.Status, answer)
		}
		return "", p
	}
	var accepted struct {
		TaskID string `json:"task_id"`
	}
	if err := json.Unmarshal(answer, &accepted); err != nil || accepted.TaskID == "" {
		return "", fmt.Errorf("202 without a task id: %s", answer)
	}
	return accepted.TaskID, nil
}

// mustSubmit sends one task that must be accepted at once.
func (p *pipeline) mustSubmit(t testing.TB, conversation, priority, payload string) sentTask {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: oneShot}
	id, err := submit(t.Context(), client, *p.api.Load(), "",
		taskBody{Conversation: conversation, Type: "scenario", Priority: priority, Payload: json.RawMessage(payload)})
	if err != nil {
		t.Fatalf("submit to %s: %v", conversation, err)
	}
	return sentTask{id: id, conversation: conversation, priority: priority, content: payload, acceptedAt: time.Now()}
}

// result waits until a task is done and returns what the API says of it.
func (p *pipeline) result(t testing.TB, id string) millrace.TaskResult {
	t.Helper()
	var result millrace.TaskResult
	eventually(t, settlePatience, "task "+id+" is done", func() error {
		if err := get(*p.api.Load()+"/v1/tasks/"+id+"?wait=30s", http.StatusOK, &result); err != nil {
			return err
		}
		if !result.Status.Final() {
			return errors.New(string(result.Status))
		}
		return nil
	})
	return result
}

// mustComplete checks that the pipeline still does its work.
func (p *pipeline) mustComplete(t testing.TB, conversation string) {
	t.Helper()
	task := p.mustSubmit(t, conversation, "high", `{"text":"still there?"}`)
	if r := p.result(t, task.id); r.Status != millrace.StatusCompleted {
		t.Errorf("a good task ended as %s: %s", r.Status, r.Error)
	}
}
