package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeAPI is ingest as the command sees it.
type fakeAPI struct {
	mu       sync.Mutex
	bodies   []string
	keys     []string
	answer   func(w http.ResponseWriter, r *http.Request, body string)
	requests int
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	if r.Method == http.MethodPost {
		a.bodies = append(a.bodies, string(body))
		a.keys = append(a.keys, r.Header.Get("Idempotency-Key"))
	}
	a.answer(w, r, string(body))
}

func start(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, body string)) (*fakeAPI, []string) {
	t.Helper()
	a := &fakeAPI{answer: answer}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	return a, []string{"MILLRACE_URL=" + server.URL}
}

func TestSubmitSendsATaskAndWaitsForIt(t *testing.T) {
	polls := 0
	a, env := start(t, func(w http.ResponseWriter, r *http.Request, _ string) {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprint(w, `{"task_id":"t1","priority":"high","status":"queued"}`)
			return
		}
		if r.URL.String() != "/v1/tasks/t1?wait=30s" {
			t.Errorf("asked for %s", r.URL)
		}
		if polls++; polls == 1 {
			fmt.Fprint(w, `{"task_id":"t1","status":"running"}`)
			return
		}
		fmt.Fprint(w, `{"task_id":"t1","status":"completed","result":{"a":1}}`)
	})
	got := call(t, env, `{"text":"hi"}`, "submit", "--conversation", "c1", "--type", "chat", "--priority", "high", "--payload", "-", "--attribute", "k=v", "--wait")
	if got.code != 0 || got.out != `{"task_id":"t1","status":"completed","result":{"a":1}}`+"\n" {
		t.Errorf("got %+v", got)
	}
	if want := `{"conversation":"c1","type":"chat","payload":{"text":"hi"},"priority":"high","attributes":{"k":"v"}}`; a.bodies[0] != want {
		t.Errorf("sent %s", a.bodies[0])
	}
}

func TestSubmitPrintsTheIDAndLeavesUnkeyedTasksWithoutConversation(t *testing.T) {
	a, env := start(t, func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"task_id":"t1"}`)
	})
	got := call(t, env, "", "submit", "--payload", "1", "--idempotency-key", "k")
	if got.code != 0 || got.out != "t1\n" || a.bodies[0] != `{"conversation":null,"type":"task","payload":1}` || a.keys[0] != "k" {
		t.Errorf("got %+v, sent %q with %q", got, a.bodies, a.keys)
	}
}

func TestSubmitHoldsATaskBack(t *testing.T) {
	a, env := start(t, func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"task_id":"t1"}`)
	})
	for _, flags := range [][]string{{"--run-at", "2031-02-03T04:05:06+07:00"}, {"--delay", "1h30m"}, {"--delay", "0"}} {
		if got := call(t, env, "", append([]string{"submit", "--payload", "1"}, flags...)...); got.code != 0 {
			t.Fatalf("%v: %+v", flags, got)
		}
	}
	if want := `{"conversation":null,"type":"task","payload":1,"run_at":"2031-02-03T04:05:06+07:00"}`; a.bodies[0] != want {
		t.Errorf("sent %s", a.bodies[0])
	}
	var task struct {
		RunAt time.Time `json:"run_at"`
	}
	if err := json.Unmarshal([]byte(a.bodies[1]), &task); err != nil || time.Until(task.RunAt) > 90*time.Minute || time.Until(task.RunAt) < 80*time.Minute {
		t.Errorf("sent %s, %v", a.bodies[1], err)
	}
	if strings.Contains(a.bodies[2], "run_at") {
		t.Errorf("sent %s without a delay", a.bodies[2])
	}
}

func TestSubmitSendsAgainWhatWasRefusedForLoad(t *testing.T) {
	a, env := start(t, nil)
	a.answer = func(w http.ResponseWriter, _ *http.Request, _ string) {
		if a.requests == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"task_id":"t1"}`)
	}
	if got := call(t, env, "", "submit", "--payload", "1"); got.code != 0 || a.requests != 2 {
		t.Errorf("got %+v after %d requests", got, a.requests)
	}
}

func TestSubmitTellsTheProblem(t *testing.T) {
	_, env := start(t, func(w http.ResponseWriter, _ *http.Request, _ string) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"status":400,"title":"Unknown priority","detail":"#/priority: \"x\"","hint":"see the list"}`)
	})
	got := call(t, env, "", "submit", "--payload", "1")
	if got.code != 1 || !strings.Contains(got.err, `400 Bad Request: #/priority: "x" (see the list)`) {
		t.Errorf("got %+v", got)
	}
}

func TestFailedTaskFailsTheCommand(t *testing.T) {
	_, env := start(t, func(w http.ResponseWriter, _ *http.Request, _ string) {
		fmt.Fprint(w, `{"task_id":"t1","status":"failed","error":"no such model"}`)
	})
	got := call(t, env, "", "submit", "--payload", "1", "--wait")
	if got.code != 1 || !strings.Contains(got.err, "no such model") || !strings.Contains(got.out, `"status":"failed"`) {
		t.Errorf("got %+v", got)
	}
}

func TestSubmitGivesUpAtItsTimeout(t *testing.T) {
	_, env := start(t, func(w http.ResponseWriter, r *http.Request, _ string) {
		if r.Method == http.MethodGet {
			<-r.Context().Done()
			return
		}
		fmt.Fprint(w, `{"task_id":"t1"}`)
	})
	got := call(t, env, "", "submit", "--payload", "1", "--wait", "--timeout", "50ms")
	if got.code != 1 || !strings.Contains(got.err, "not done within 50ms (--timeout)") {
		t.Errorf("got %+v", got)
	}
}

// takeAll answers a batch: refuse says which lines are too many for now.
func takeAll(w http.ResponseWriter, body string, refuse func(line string) bool) {
	w.Header().Set("Retry-After", "1")
	for i, text := range strings.Split(strings.TrimSuffix(body, "\n"), "\n") {
		switch {
		case refuse(text):
			fmt.Fprintf(w, `{"line":%d,"status":429,"error":{"status":429}}`+"\n", i+1)
		case strings.Contains(text, "bad"):
			fmt.Fprintf(w, `{"line":%d,"status":400,"error":{"status":400,"detail":"broken"}}`+"\n", i+1)
		default:
			fmt.Fprintf(w, `{"line":%d,"status":202,"task_id":"id-%s"}`+"\n", i+1, text)
		}
	}
}

func TestBatchSendsRefusedLinesAgainInOrder(t *testing.T) {
	a, env := start(t, nil)
	a.answer = func(w http.ResponseWriter, _ *http.Request, body string) {
		takeAll(w, body, func(line string) bool { return a.requests == 1 && line != "1" })
	}
	got := call(t, env, "1\n\n2\n3\n", "submit", "--batch", "-")
	if got.code != 0 || got.out != "id-1\nid-2\nid-3\n" || !slices.Equal(a.bodies, []string{"1\n2\n3\n", "2\n3\n"}) {
		t.Errorf("got %+v after %q", got, a.bodies)
	}
}

func TestKeyedBatchSendsTheSameLinesUnderTheSameKey(t *testing.T) {
	a, env := start(t, nil)
	a.answer = func(w http.ResponseWriter, _ *http.Request, body string) {
		takeAll(w, body, func(line string) bool { return a.requests == 1 && line == "2" })
	}
	got := call(t, env, "1\n2\n3\n", "submit", "--batch", "-", "--idempotency-key", "k")
	if got.code != 0 || got.out != "id-1\nid-3\nid-2\n" || !slices.Equal(a.keys, []string{"k/1", "k/1"}) || a.bodies[0] != a.bodies[1] {
		t.Errorf("got %+v after %q with %q", got, a.bodies, a.keys)
	}
}

func TestBatchNamesBadLinesAndGoesOn(t *testing.T) {
	_, env := start(t, func(w http.ResponseWriter, _ *http.Request, body string) {
		takeAll(w, body, func(string) bool { return false })
	})
	got := call(t, env, "1\nbad\n3\n", "submit", "--batch", "-")
	if got.code != 1 || got.out != "id-1\nid-3\n" || !strings.Contains(got.err, "line 2: 400 Bad Request: broken") || !strings.Contains(got.err, "1 of 3 tasks failed") {
		t.Errorf("got %+v", got)
	}
}

func TestBatchIsSentInPieces(t *testing.T) {
	a, env := start(t, func(w http.ResponseWriter, _ *http.Request, body string) {
		takeAll(w, body, func(string) bool { return false })
	})
	path := filepath.Join(t.TempDir(), "tasks.ndjson")
	if err := os.WriteFile(path, []byte(strings.Repeat("1\n", batchLines+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	got := call(t, env, "", "submit", "--batch", path)
	if got.code != 0 || len(a.bodies) != 2 || a.bodies[1] != "1\n" {
		t.Errorf("code %d, %d requests: %s", got.code, len(a.bodies), got.err)
	}
}
