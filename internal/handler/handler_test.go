package handler_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"millrace"
	"millrace/internal/handler"
	"millrace/llm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func turnWith(payload string) *millrace.Turn {
	return millrace.NewTurn(millrace.TurnConfig{
		Task: millrace.Task{ID: "t1", Conversation: "c", Type: "chat", Priority: millrace.High, Payload: []byte(payload)},
		Conversation: millrace.Conversation{
			ID: "c", Version: 4, State: []byte(`{"turns":4}`), Length: 1,
			Tail: []millrace.Message{{Seq: 1, Role: "user", Content: "before"}},
		},
		Attempt: 2,
	})
}

func TestEchoAnswersWithTheSameBytesAndCountsTurns(t *testing.T) {
	for payload, result := range map[string]string{
		`{"text":"hi"}`: `{"text":"hi"}`,
		`plain`:         `"plain"`,
		"\xff\x00":      `"/wA="`,
		"":              `""`,
	} {
		turn := turnWith(payload)
		if err := (handler.Echo{}).Handle(t.Context(), turn); err != nil {
			t.Fatal(err)
		}
		e := turn.Effects()
		if len(e.Messages) != 2 || e.Messages[0].Content != payload || e.Messages[1].Content != payload ||
			e.Messages[0].Role != "user" || e.Messages[1].Role != "assistant" {
			t.Errorf("%q: messages %+v", payload, e.Messages)
		}
		if string(e.State) != `{"turns":5}` || string(e.Result) != result {
			t.Errorf("%q: state %s, result %s", payload, e.State, e.Result)
		}
	}
	unkeyed := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "t", Payload: []byte("x")}})
	if err := (handler.Echo{}).Handle(t.Context(), unkeyed); err != nil {
		t.Errorf("unkeyed task: %v", err)
	}
}

type chatFunc func(llm.ChatRequest) (llm.ChatResponse, error)

func (f chatFunc) Chat(_ context.Context, _ *millrace.Turn, r llm.ChatRequest) (llm.ChatResponse, error) {
	return f(r)
}

func TestAgentSendsTheConversationAndAppendsTheAnswer(t *testing.T) {
	turn := turnWith(`{"text":"and now?"}`)
	var asked llm.ChatRequest
	agent := handler.Agent{LLM: chatFunc(func(r llm.ChatRequest) (llm.ChatResponse, error) {
		asked = r
		return llm.ChatResponse{Content: "later", Model: "m"}, nil
	})}
	if err := agent.Handle(t.Context(), turn); err != nil {
		t.Fatal(err)
	}
	if len(asked.Messages) != 2 || asked.Messages[0].Content != "before" || asked.Messages[1].Content != "and now?" {
		t.Errorf("asked %+v", asked.Messages)
	}
	e := turn.Effects()
	if len(e.Messages) != 2 || e.Messages[0].Content != "and now?" || e.Messages[1].Content != "later" {
		t.Errorf("messages %+v", e.Messages)
	}
	if err := agent.Handle(t.Context(), turnWith("\xff")); !millrace.IsPermanent(err) {
		t.Errorf("binary payload: %v, want a permanent error", err)
	}
	broken := handler.Agent{LLM: chatFunc(func(llm.ChatRequest) (llm.ChatResponse, error) { return llm.ChatResponse{}, errors.New("503") })}
	failed := turnWith("x")
	if err := broken.Handle(t.Context(), failed); err == nil || len(failed.Effects().Messages) != 1 || failed.Effects().Messages[0].Content != "x" {
		t.Errorf("error %v, effects %+v: want what was asked, which an interrupted turn keeps", err, failed.Effects())
	}
}

type registrar struct{ live int }

func (r *registrar) Register(*millrace.Turn) (string, func()) {
	r.live++
	return "token", func() { r.live-- }
}

func TestHTTPPostsTheTurnAndTakesItsAnswer(t *testing.T) {
	var got map[string]any
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &got); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"messages":[{"role":"assistant","content":"hello"}],"state":{"turns":5},
			"events":[{"type":"greeted","topic":"events","data":{"x":1}}],"result":{"ok":true}}`)
	}))
	defer server.Close()
	turns := &registrar{}
	turn := turnWith(`{"text":"hi"}`)
	h := handler.NewHTTP(server.URL, turns)
	defer h.Close()
	if err := h.Handle(t.Context(), turn); err != nil {
		t.Fatal(err)
	}
	task, _ := got["task"].(map[string]any)
	if task["id"] != "t1" || task["priority"] != "high" || got["attempt"] != 2.0 || got["version"] != 4.0 || got["conversation"] != "c" {
		t.Errorf("posted %v", got)
	}
	if payload, _ := task["payload"].(map[string]any); payload["text"] != "hi" {
		t.Errorf("payload %v", task["payload"])
	}
	if history, _ := got["history"].([]any); len(history) != 1 {
		t.Errorf("history %v", got["history"])
	}
	if header.Get(handler.TurnHeader) != "token" || header.Get("Idempotency-Key") != "t1/0" {
		t.Errorf("headers %v", header)
	}
	if turns.live != 0 {
		t.Error("the turn is still registered")
	}
	e := turn.Effects()
	if len(e.Messages) != 1 || string(e.State) != `{"turns":5}` || string(e.Result) != `{"ok":true}` ||
		len(e.Events) != 1 || e.Events[0].Type != "greeted" || string(e.Events[0].Data) != `{"x":1}` {
		t.Errorf("effects %+v", e)
	}
}

// severalTasks is a turn that answers two more tasks.
func severalTasks() *millrace.Turn {
	other := func(id, payload string) *millrace.Task {
		return &millrace.Task{ID: id, Conversation: "c", Type: "chat", Priority: millrace.High, Payload: []byte(payload)}
	}
	return millrace.NewTurn(millrace.TurnConfig{
		Task:         *other("t1", `{"text":"one"}`),
		Coalesced:    []*millrace.Task{other("t2", "two"), other("t3", `{"text":"three"}`)},
		Conversation: millrace.Conversation{ID: "c", Version: 4, State: []byte(`{"turns":4}`)},
	})
}

func TestHandlersAnswerAllTasksOfATurnAtOnce(t *testing.T) {
	t.Run("echo", func(t *testing.T) {
		turn := severalTasks()
		if err := (handler.Echo{}).Handle(t.Context(), turn); err != nil {
			t.Fatal(err)
		}
		e := turn.Effects()
		if len(e.Messages) != 4 || e.Messages[0].Content != `{"text":"one"}` || e.Messages[1].Content != "two" || e.Messages[2].Content != `{"text":"three"}` ||
			e.Messages[3].Role != millrace.RoleAssistant || e.Messages[3].Content != "{\"text\":\"one\"}\ntwo\n{\"text\":\"three\"}" {
			t.Errorf("messages %+v", e.Messages)
		}
		if string(e.State) != `{"turns":5}` || string(e.Result) != `[{"text":"one"},"two",{"text":"three"}]` {
			t.Errorf("state %s, result %s", e.State, e.Result)
		}
	})
	t.Run("agent", func(t *testing.T) {
		turn := severalTasks()
		var asked llm.ChatRequest
		agent := handler.Agent{LLM: chatFunc(func(r llm.ChatRequest) (llm.ChatResponse, error) {
			asked = r
			return llm.ChatResponse{Content: "all three", Model: "m"}, nil
		})}
		if err := agent.Handle(t.Context(), turn); err != nil {
			t.Fatal(err)
		}
		if len(asked.Messages) != 3 || asked.Messages[0].Content != "one" || asked.Messages[1].Content != "two" || asked.Messages[2].Content != "three" {
			t.Errorf("asked %+v", asked.Messages)
		}
		e := turn.Effects()
		if len(e.Messages) != 4 || e.Messages[1].Content != "two" || e.Messages[1].Role != millrace.RoleUser || e.Messages[3].Content != "all three" {
			t.Errorf("messages %+v", e.Messages)
		}
	})
	t.Run("http", func(t *testing.T) {
		var got struct {
			Task      struct{ ID string }
			Coalesced []struct {
				ID      string
				Payload any
			}
		}
		server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
				t.Error(err)
			}
		}))
		defer server.Close()
		h := handler.NewHTTP(server.URL, nil)
		defer h.Close()
		if err := h.Handle(t.Context(), severalTasks()); err != nil {
			t.Fatal(err)
		}
		if got.Task.ID != "t1" || len(got.Coalesced) != 2 || got.Coalesced[0].ID != "t2" || got.Coalesced[0].Payload != "two" || got.Coalesced[1].ID != "t3" {
			t.Errorf("posted %+v", got)
		}
	})
}

func TestHTTPAnswersDecideOnRetries(t *testing.T) {
	for _, tt := range []struct {
		name      string
		status    int
		header    string
		body      string
		permanent bool
		delay     time.Duration
		ok        bool
	}{
		{name: "no content", status: 204, ok: true},
		{name: "empty", status: 200, ok: true},
		{name: "nulls", status: 200, body: `{"state":null,"result":null,"messages":null}`, ok: true},
		{name: "conflict", status: 409},
		{name: "throttled", status: 429, header: "7", delay: 7 * time.Second},
		{name: "throttled for ever", status: 429, header: "99999999999", delay: time.Hour},
		{name: "unavailable", status: 503, header: "Fri, 31 Dec 1999 23:59:59 GMT", delay: 0},
		{name: "server error", status: 500},
		{name: "bad request", status: 400, permanent: true},
		{name: "not found", status: 404, permanent: true},
		{name: "redirect", status: 302, permanent: true},
		{name: "no JSON", status: 200, body: "hello", permanent: true},
		{name: "unknown field", status: 200, body: `{"mesages":[]}`, permanent: true},
		{name: "two values", status: 200, body: `{}{}`, permanent: true},
		{name: "bad role", status: 200, body: `{"messages":[{"role":"","content":"x"}]}`, permanent: true},
		{name: "bad event", status: 200, body: `{"events":[{"data":1}]}`, permanent: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tt.header != "" {
					w.Header().Set("Retry-After", tt.header)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			}))
			defer server.Close()
			h := handler.NewHTTP(server.URL, nil)
			defer h.Close()
			turn := turnWith("x")
			err := h.Handle(t.Context(), turn)
			if (err == nil) != tt.ok || millrace.IsPermanent(err) != tt.permanent {
				t.Fatalf("error %v, permanent %v", err, millrace.IsPermanent(err))
			}
			var after *millrace.RetryAfterError
			if errors.As(err, &after) != (tt.delay > 0) || after != nil && after.Delay != tt.delay {
				t.Errorf("error %v, want a delay of %s", err, tt.delay)
			}
			if e := turn.Effects(); tt.ok && !e.Empty() {
				t.Errorf("effects %+v", e)
			}
		})
	}
}

func TestHTTPCountsNoAttemptWhenTheHandlerIsNotThere(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close()
	h := handler.NewHTTP(server.URL, nil)
	defer h.Close()
	if err := h.Handle(t.Context(), turnWith("x")); millrace.DependencyOf(err) != handler.Dependency {
		t.Errorf("refused connection: %v, want an outage of the handler", err)
	}
}

func TestHTTPCountsNoAttemptWhenTheHandlersCallHasFoundAProviderOut(t *testing.T) {
	var status int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	defer server.Close()
	h := handler.NewHTTP(server.URL, nil)
	defer h.Close()
	out := millrace.UnavailableDependency("llm/p", errors.New("status 503"))
	for _, tt := range []struct {
		name   string
		status int
		calls  func(*millrace.Turn)
		outage bool
	}{
		{"no call", 502, func(*millrace.Turn) {}, false},
		{"provider out", 502, func(turn *millrace.Turn) { turn.Unreached(out) }, true},
		{"it answered again", 502, func(turn *millrace.Turn) { turn.Unreached(out); turn.Reached("llm/p") }, false},
		{"another one answered", 502, func(turn *millrace.Turn) { turn.Unreached(out); turn.Reached("llm/q") }, true},
		{"no reason to try again", 400, func(turn *millrace.Turn) { turn.Unreached(out) }, false},
	} {
		turn := turnWith("x")
		tt.calls(turn)
		status = tt.status
		err := h.Handle(t.Context(), turn)
		if err == nil || millrace.IsUnavailable(err) != tt.outage || tt.outage != (millrace.DependencyOf(err) == "llm/p") {
			t.Errorf("%s: %v, outage of %q", tt.name, err, millrace.DependencyOf(err))
		}
	}
}

func TestHTTPSendsBinaryPayloadsAsBase64(t *testing.T) {
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
	}))
	defer server.Close()
	h := handler.NewHTTP(server.URL, nil)
	defer h.Close()
	if err := h.Handle(t.Context(), turnWith("\xff\x00")); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(body, `"payload_base64":"/wA="`) || strings.Contains(body, `"payload":`) {
		t.Errorf("body %s", body)
	}
}
