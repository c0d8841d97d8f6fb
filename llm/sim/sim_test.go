package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSim(t *testing.T, cfg Config) *Simulator {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openAIRequest(question string) *http.Request {
	body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%q}]}`, question)
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions", strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer key")
	return r
}

func anthropicRequest(question string) *http.Request {
	body := fmt.Sprintf(`{"model":"m","max_tokens":100,"messages":[{"role":"user","content":[{"type":"text","text":%q}]}]}`, question)
	r := httptest.NewRequest(http.MethodPost, "/v1/messages", strings.NewReader(body))
	r.Header.Set("X-Api-Key", "key")
	return r
}

func send(s *Simulator, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

func TestAnswersFollowFromSeedAndRequest(t *testing.T) {
	a, b, c := newSim(t, Config{Seed: 1}), newSim(t, Config{Seed: 1}), newSim(t, Config{Seed: 2})
	send(b, openAIRequest("something before"))
	text := func(s *Simulator) string {
		var answer struct {
			Choices []struct{ Message struct{ Content string } }
		}
		if err := json.Unmarshal(send(s, openAIRequest("how\n are  you?")).Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Choices[0].Message.Content
	}
	if !strings.HasPrefix(text(a), "Re: how are you?.") {
		t.Errorf("answer %q does not echo the question", text(a))
	}
	if text(a) != text(b) {
		t.Errorf("one seed, two answers: %q and %q", text(a), text(b))
	}
	if text(a) == text(c) {
		t.Errorf("two seeds, one answer: %q", text(a))
	}
}

func TestRequestsAreLimitedOverASlidingMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Limits: Limits{RequestsPerMinute: 3}})
		for range 3 {
			if w := send(s, openAIRequest("q")); w.Code != http.StatusOK {
				t.Fatalf("status %d below the limit: %s", w.Code, w.Body)
			}
			<-time.After(10 * time.Second)
		}
		w := send(s, openAIRequest("q"))
		if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "30" {
			t.Fatalf("status %d, retry-after %q: want 429 and the 30s until the first ages out", w.Code, w.Header().Get("Retry-After"))
		}
		for _, want := range []string{"rate_limit_exceeded", "RPM", "Limit 3, Used 3", "try again in 30s"} {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("body %s does not mention %q", w.Body, want)
			}
		}
		if got := w.Header().Get("x-ratelimit-remaining-requests"); got != "0" {
			t.Errorf("remaining %q", got)
		}
		<-time.After(30 * time.Second)
		w = send(s, anthropicRequest("q"))
		if w.Code != http.StatusOK || w.Header().Get("anthropic-ratelimit-requests-limit") != "3" {
			t.Fatalf("status %d after the wait, headers %v", w.Code, w.Header())
		}
		w = send(s, anthropicRequest("q"))
		if w.Code != http.StatusTooManyRequests || !strings.Contains(w.Body.String(), "rate_limit_error") {
			t.Fatalf("status %d, body %s: want Anthropic's refusal", w.Code, w.Body)
		}
		if peak := s.Summary().Peaks[KeyID("key")].RequestsPerMinute; peak != 3 {
			t.Errorf("peak %d", peak)
		}
	})
}

func TestTokensAreLimitedAndOneTooLargeIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Limits: Limits{TokensPerMinute: 150}, AnswerTokens: 1})
		question := strings.Repeat("long ", 70)
		if w := send(s, openAIRequest(question)); w.Code != http.StatusOK {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		w := send(s, openAIRequest(question))
		if w.Code != http.StatusTooManyRequests || !strings.Contains(w.Body.String(), "TPM") {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		<-time.After(time.Minute)
		if w := send(s, openAIRequest(question)); w.Code != http.StatusOK {
			t.Fatalf("status %d after a minute", w.Code)
		}
	})
}

func TestConcurrencyIsLimitedPerKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Limits: Limits{Concurrency: 1}, Latency: Latency{Mean: time.Second}})
		done := make(chan int, 1)
		go func() { done <- send(s, openAIRequest("q")).Code }()
		synctest.Wait()
		if w := send(s, openAIRequest("q")); w.Code != http.StatusTooManyRequests {
			t.Fatalf("status %d while another is under way", w.Code)
		}
		other := openAIRequest("q")
		other.Header.Set("Authorization", "Bearer other")
		if w := send(s, other); w.Code != http.StatusOK {
			t.Fatalf("status %d for another key", w.Code)
		}
		if code := <-done; code != http.StatusOK {
			t.Fatalf("status %d for the first", code)
		}
	})
}

func TestLatencyGrowsWithTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Latency: Latency{Mean: time.Second, PerToken: 10 * time.Millisecond}})
		start := time.Now()
		send(s, openAIRequest("q"))
		want := time.Second + time.Duration(s.Ledger(0)[0].OutputTokens)*10*time.Millisecond
		if d := time.Since(start); d != want {
			t.Fatalf("took %s, want %s", d, want)
		}
	})
}

func TestBadRequestsAreRefusedInTheProvidersFormat(t *testing.T) {
	s := newSim(t, Config{Keys: map[string]Limits{"key": {}}})
	for name, c := range map[string]struct {
		path, key, body string
		status          int
		want            string
	}{
		"no key":          {"/v1/chat/completions", "", `{}`, 401, `"invalid_api_key"`},
		"unknown key":     {"/v1/messages", "other", `{}`, 401, `"authentication_error"`},
		"broken JSON":     {"/v1/chat/completions", "key", `{`, 400, `"invalid_request_error"`},
		"no model":        {"/v1/chat/completions", "key", `{"messages":[{"role":"user","content":"q"}]}`, 400, "model: missing"},
		"no messages":     {"/v1/messages", "key", `{"model":"m","max_tokens":1}`, 400, "messages: want"},
		"no role":         {"/v1/messages", "key", `{"model":"m","max_tokens":1,"messages":[{"content":"q"}]}`, 400, "messages.0.role"},
		"no max tokens":   {"/v1/messages", "key", `{"model":"m","messages":[{"role":"user","content":"q"}]}`, 400, "max_tokens"},
		"numeric content": {"/v1/messages", "key", `{"model":"m","max_tokens":1,"messages":[{"role":"user","content":5}]}`, 400, "content"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(c.body))
			if c.key != "" {
				r.Header.Set("Authorization", "Bearer "+c.key)
			}
			w := send(s, r)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) || !json.Valid(w.Body.Bytes()) {
				t.Fatalf("status %d, body %s: want %d and %s", w.Code, w.Body, c.status, c.want)
			}
		})
	}
}

func TestFaultsOnDemand(t *testing.T) {
	s := newSim(t, Config{HangFor: 20 * time.Millisecond})
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	fetch := func(fault string, stream bool) (int, []byte, error) {
		body := fmt.Sprintf(`{"model":"m","stream":%v,"messages":[{"role":"user","content":"q"}]}`, stream)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer key")
		r.Header.Set(FaultHeader, fault)
		response, err := server.Client().Do(r)
		if err != nil {
			return 0, nil, err
		}
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(response.Body)
		return response.StatusCode, answer, err
	}
	if code, answer, err := fetch(FaultServerError, false); code != 500 || err != nil || !bytes.Contains(answer, []byte("server_error")) {
		t.Errorf("5xx: %d %s %v", code, answer, err)
	}
	for _, stream := range []bool{false, true} {
		if code, answer, err := fetch(FaultCut, stream); code != 200 || err == nil || len(answer) == 0 {
			t.Errorf("cut, stream %v: %d %q %v: want half an answer and an error", stream, code, answer, err)
		}
		if code, answer, err := fetch(FaultGarbage, stream); code != 200 || err != nil || json.Valid(answer) {
			t.Errorf("garbage, stream %v: %d %q %v", stream, code, answer, err)
		}
		if _, answer, err := fetch(FaultHang, stream); err == nil {
			t.Errorf("hang, stream %v: answered %q", stream, answer)
		}
	}
	if code, answer, _ := fetch("flood", false); code != 400 || !bytes.Contains(answer, []byte("flood")) {
		t.Errorf("unknown fault: %d %s", code, answer)
	}
	if n := s.Summary().Faults[FaultCut]; n != 2 {
		t.Errorf("the ledger counts %d cuts, want 2", n)
	}
	server.CloseClientConnections()
	server.Client().CloseIdleConnections()
}

func TestFaultsByRateAreSeeded(t *testing.T) {
	statuses := func(seed uint64) (codes []int) {
		s := newSim(t, Config{Seed: seed, Faults: Faults{ServerError: 0.3}})
		for range 200 {
			codes = append(codes, send(s, openAIRequest("q")).Code)
		}
		return codes
	}
	a, b := statuses(7), statuses(7)
	failed := 0
	for i := range a {
		if a[i] != b[i] {
			t.Fatal("one seed, two histories")
		}
		if a[i] == 500 {
			failed++
		}
	}
	if failed < 40 || failed > 80 {
		t.Fatalf("%d of 200 failed at a rate of 0.3", failed)
	}
}

func TestLedgerIsBoundedAndContinues(t *testing.T) {
	s := newSim(t, Config{LedgerSize: 5})
	for i := range 8 {
		send(s, openAIRequest(fmt.Sprint(i)))
	}
	read := func(query string) (seqs []int64) {
		w := send(s, httptest.NewRequest(http.MethodGet, "/ledger"+query, nil))
		lines := bufio.NewScanner(w.Body)
		for lines.Scan() {
			var c Call
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Fatal(err)
			}
			if !c.Ended || !c.Complete || c.Status != 200 || c.OutputTokens == 0 {
				t.Errorf("entry %+v is not of a complete call", c)
			}
			seqs = append(seqs, c.Seq)
		}
		return seqs
	}
	if got := fmt.Sprint(read("")); got != "[4 5 6 7 8]" {
		t.Errorf("kept %s", got)
	}
	if got := fmt.Sprint(read("?after=6")); got != "[7 8]" {
		t.Errorf("after 6: %s", got)
	}
	if w := send(s, httptest.NewRequest(http.MethodGet, "/ledger?after=x", nil)); w.Code != 400 {
		t.Errorf("after=x: status %d", w.Code)
	}
	var sum Summary
	if err := json.Unmarshal(send(s, httptest.NewRequest(http.MethodGet, "/ledger/summary", nil)).Body.Bytes(), &sum); err != nil {
		t.Fatal(err)
	}
	if sum.Calls != 8 || sum.Complete != 8 || sum.Statuses[200] != 8 || sum.Peaks[KeyID("key")].RequestsPerMinute != 8 {
		t.Errorf("summary %+v", sum)
	}
	send(s, httptest.NewRequest(http.MethodPost, "/reset", nil))
	if n := s.Summary().Calls; n != 0 || len(s.Ledger(0)) != 0 {
		t.Errorf("%d calls after the reset", n)
	}
	send(s, openAIRequest("q"))
	if calls := s.Ledger(8); len(calls) != 1 || calls[0].Seq != 9 {
		t.Errorf("after the reset: %+v", calls)
	}
}

func TestClientThatLeavesIsNotComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Latency: Latency{Mean: time.Minute}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		func() {
			defer func() {
				if got := recover(); got != http.ErrAbortHandler { //nolint:errorlint // the value net/http compares with
					t.Errorf("recovered %v", got)
				}
			}()
			send(s, openAIRequest("q").WithContext(ctx))
		}()
		if c := s.Ledger(0)[0]; !c.Ended || c.Complete {
			t.Fatalf("entry %+v", c)
		}
	})
}

func TestNewReportsAllThatIsWrong(t *testing.T) {
	_, err := New(Config{
		Limits: Limits{Concurrency: -1}, Faults: Faults{Cut: 0.7, Hang: 0.7}, AnswerTokens: -1,
		Keys: map[string]Limits{"k": {TokensPerMinute: -1}},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"concurrency -1", "sum up to 1.4", "answer tokens", "limits of key k"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestNoKeyIsShown(t *testing.T) {
	s := newSim(t, Config{})
	seen := make(map[string]bool)
	for _, key := range []string{"sk-0123456789abcdefghij", "sk-real-paid", "k"} {
		r := openAIRequest("q")
		r.Header.Set("Authorization", "Bearer "+key)
		send(s, r)
		calls := s.Ledger(0)
		shown := calls[len(calls)-1].Key
		if strings.Contains(shown, key) && key != "k" || len(shown) != len("key-00000000") {
			t.Errorf("the ledger shows %q as %q", key, shown)
		}
		if _, ok := s.Summary().Peaks[shown]; !ok {
			t.Errorf("%q is not in the summary: %v", shown, s.Summary().Peaks)
		}
		seen[shown] = true
	}
	if len(seen) != 3 {
		t.Errorf("keys cannot be told apart: %v", seen)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"ä"}]}`))
	f.Add([]byte(`{"model":"m","stream":true,"max_tokens":3,"messages":[{"role":"user","content":[{"text":"a"}]}]}`))
	s, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, path := range []string{"/v1/chat/completions", "/v1/messages"} {
			r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
			r.Header.Set("Authorization", "Bearer key")
			if w := send(s, r); w.Code != 200 && w.Code != 400 {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
		}
	})
}
