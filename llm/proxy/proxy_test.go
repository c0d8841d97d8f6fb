package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	anthropicsdk "github.com/anthropics/anthropic-sdk-go"
	openaisdk "github.com/openai/openai-go/v3"

	"millrace"
	"millrace/llm/sim"
	"millrace/ratelimit"
)

func TestOfficialOpenAIClientThroughTheProxy(t *testing.T) {
	s := newSim(t, sim.Config{})
	w := newWorld(t, s.Handler())
	turn, token := w.run()
	client := w.openAI(token)
	answer, err := client.Chat.Completions.New(t.Context(), openAIParams)
	if err != nil {
		t.Fatal(err)
	}
	if text := answer.Choices[0].Message.Content; !strings.HasPrefix(text, sim.Echo("how are you?")) {
		t.Errorf("answer %q", text)
	}
	stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams)
	var text strings.Builder
	for stream.Next() {
		if len(stream.Current().Choices) == 0 {
			t.Error("the agent got a usage chunk that it had not asked for")
			continue
		}
		text.WriteString(stream.Current().Choices[0].Delta.Content)
	}
	if err := stream.Err(); err != nil || !strings.HasPrefix(text.String(), sim.Echo("how are you?")) {
		t.Errorf("streamed %q, %v", text.String(), err)
	}
	calls := s.Ledger(0)
	if len(calls) != 2 || calls[0].Model != "m" || calls[0].Key != sim.KeyID(realKey) {
		t.Fatalf("the provider saw %+v", calls)
	}
	want := millrace.Usage{
		Calls: 2, InputTokens: calls[0].InputTokens + calls[1].InputTokens,
		OutputTokens: calls[0].OutputTokens + calls[1].OutputTokens,
	}
	if usage := turn.Effects().Usage; usage != want {
		t.Errorf("the turn counts %+v, the provider %+v", usage, want)
	}
}

func TestUsageChunkIsPassedOnWhenAskedFor(t *testing.T) {
	w := newWorld(t, newSim(t, sim.Config{}).Handler())
	_, token := w.run()
	params := openAIParams
	params.StreamOptions.IncludeUsage = openaisdk.Bool(true)
	client := w.openAI(token)
	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	var last openaisdk.ChatCompletionChunk
	for stream.Next() {
		last = stream.Current()
	}
	if err := stream.Err(); err != nil || last.Usage.CompletionTokens == 0 {
		t.Errorf("last chunk %+v, %v", last, err)
	}
}

func TestOfficialAnthropicClientThroughTheProxy(t *testing.T) {
	s := newSim(t, sim.Config{})
	w := newWorld(t, s.Handler())
	turn, token := w.run()
	client := w.anthropic(token)
	answer, err := client.Messages.New(t.Context(), anthropicParams)
	if err != nil {
		t.Fatal(err)
	}
	if text := answer.Content[0].Text; !strings.HasPrefix(text, sim.Echo("how are you?")) {
		t.Errorf("answer %q", text)
	}
	stream := client.Messages.NewStreaming(t.Context(), anthropicParams)
	var acc anthropicsdk.Message
	for stream.Next() {
		if err := acc.Accumulate(stream.Current()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil || !strings.HasPrefix(acc.Content[0].Text, sim.Echo("how are you?")) {
		t.Errorf("streamed %+v, %v", acc, err)
	}
	calls := s.Ledger(0)
	if usage := turn.Effects().Usage; len(calls) != 2 || usage.OutputTokens != calls[0].OutputTokens+calls[1].OutputTokens ||
		usage.InputTokens != calls[0].InputTokens+calls[1].InputTokens {
		t.Errorf("the turn counts %+v, the provider saw %+v", usage, calls)
	}
}

func TestSecondRunGetsTheSameBytesWithoutACall(t *testing.T) {
	for _, path := range paths {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s stream %v", path, stream), func(t *testing.T) {
				s := newSim(t, sim.Config{})
				w := newWorld(t, s.Handler())
				_, token := w.run()
				first := []reply{w.post(path, token, request(stream, "one")), w.post(path, token, request(stream, "two"))}
				turn, token := w.run()
				for i, question := range []string{"one", "two"} {
					again := w.post(path, token, request(stream, question))
					if first[i].status != 200 || first[i].err != nil || again.body != first[i].body ||
						again.header.Get("Content-Type") != first[i].header.Get("Content-Type") {
						t.Errorf("first %+v, then %+v", first[i], again)
					}
					if first[i].header.Get(ReplayedHeader) != "" || again.header.Get(ReplayedHeader) != "true" {
						t.Errorf("%s: first %q, then %q", ReplayedHeader, first[i].header.Get(ReplayedHeader), again.header.Get(ReplayedHeader))
					}
				}
				if n := s.Summary().Calls; n != 2 {
					t.Errorf("the provider saw %d calls", n)
				}
				if turn.Effects().Usage.Calls != 2 {
					t.Errorf("the second run counts %+v", turn.Effects().Usage)
				}
				other := w.post(path, token, request(stream, "three"))
				if other.status != 200 {
					t.Errorf("a third call: %+v", other)
				}
				_, token = w.run()
				if r := w.post(path, token, request(stream, "not one")); r.status != http.StatusConflict || !strings.Contains(r.body, "journal") {
					t.Errorf("another request in the place of the first: %+v", r)
				}
			})
		}
	}
}

func TestCallsWithoutALiveTurnAreRefused(t *testing.T) {
	s := newSim(t, sim.Config{})
	w := newWorld(t, s.Handler())
	turn := millrace.NewTurn(millrace.TurnConfig{})
	over, release := w.turns.Register(turn)
	release()
	for name, token := range map[string]string{"missing": "", "unknown": "x", "over": over} {
		for _, path := range paths {
			r := w.post(path, token, request(false, "q"))
			if r.status != 401 || !strings.Contains(r.body, Header) || !strings.Contains(r.body, `"error"`) || !strings.Contains(r.body, "default_headers") {
				t.Errorf("%s at %s: %+v", name, path, r)
			}
		}
	}
	client := w.openAI("x")
	_, err := client.Chat.Completions.New(t.Context(), openAIParams)
	var e *openaisdk.Error
	if !errors.As(err, &e) || e.StatusCode != 401 || e.Code != "millrace_turn_required" {
		t.Errorf("the SDK says %v", err)
	}
	if n := s.Summary().Calls; n != 0 {
		t.Errorf("%d calls reached the provider", n)
	}
}

func TestBadRequestsAreRefusedInTheProvidersFormat(t *testing.T) {
	w := newWorld(t, newSim(t, sim.Config{}).Handler())
	for name, c := range map[string]struct {
		path, body, want string
		status           int
	}{
		"no JSON":             {paths[0], "{", "no JSON object", 400},
		"empty":               {paths[1], "", "no JSON object", 400},
		"an array":            {paths[1], "[]", "no JSON object", 400},
		"null":                {paths[0], "null", "model: missing", 400},
		"no model":            {paths[0], "{}", "model: missing", 400},
		"stream is text":      {paths[0], `{"model":"m","stream":"yes"}`, "malformed", 400},
		"model of other kind": {paths[0], `{"model":"anthropic/m"}`, "speaks the API of anthropic", 400},
		"too large":           {paths[1], `{"model":"m","pad":"` + strings.Repeat("x", 5000) + `"}`, "larger than 4096", 413},
		"provider refuses":    {paths[1], `{"model":"m","max_tokens":1}`, "messages: want", 400},
	} {
		t.Run(name, func(t *testing.T) {
			_, token := w.run()
			r := w.post(c.path, token, c.body)
			if r.status != c.status || !strings.Contains(r.body, c.want) || !strings.Contains(r.body, `"error"`) {
				t.Errorf("got %+v, want %d with %q", r, c.status, c.want)
			}
		})
	}
}

func TestRefusalReachesTheAgentAndFreezes(t *testing.T) {
	s := newSim(t, sim.Config{Limits: sim.Limits{RequestsPerMinute: 1}})
	w := newWorld(t, s.Handler())
	_, token := w.run()
	openAI, anthropic := w.openAI(token), w.anthropic(token)
	if _, err := openAI.Chat.Completions.New(t.Context(), openAIParams); err != nil {
		t.Fatal(err)
	}
	_, err := openAI.Chat.Completions.New(t.Context(), openAIParams)
	var e *openaisdk.Error
	if !errors.As(err, &e) || e.StatusCode != 429 || e.Code != "rate_limit_exceeded" || e.Response.Header.Get("Retry-After") == "" || e.Response.Header.Get("X-Ratelimit-Limit-Requests") != "1" {
		t.Errorf("OpenAI's SDK says %v", err)
	}
	_, err = anthropic.Messages.New(t.Context(), anthropicParams)
	var ae *anthropicsdk.Error
	if !errors.As(err, &ae) || ae.StatusCode != 429 || ae.Type() != "rate_limit_error" || ae.Response.Header.Get("Retry-After") == "" {
		t.Errorf("Anthropic's SDK says %v", err)
	}
	if w.limiter.freezes != 2 {
		t.Errorf("%d freezes, want 2", w.limiter.freezes)
	}
}

func TestLimiterErrorsReachTheAgent(t *testing.T) {
	w := newWorld(t, newSim(t, sim.Config{}).Handler())
	for _, c := range []struct {
		err    error
		status int
	}{{ratelimit.ErrUnavailable, 503}, {ratelimit.ErrTooLarge, 400}} {
		w.limiter.err = c.err
		for _, path := range paths {
			_, token := w.run()
			if r := w.post(path, token, request(true, "q")); r.status != c.status || !strings.Contains(r.body, c.err.Error()) {
				t.Errorf("%v at %s: %+v", c.err, path, r)
			}
		}
	}
}

func TestServerErrorIsPassedOnAndNotJournaled(t *testing.T) {
	s := newSim(t, sim.Config{Faults: sim.Faults{ServerError: 1}})
	w := newWorld(t, s.Handler())
	for _, path := range paths {
		_, token := w.run()
		if r := w.post(path, token, request(false, "q")); r.status != 500 || !strings.Contains(r.body, "The server had an error") {
			t.Errorf("%s: %+v", path, r)
		}
	}
	if len(w.journal.results) != 0 {
		t.Errorf("%d results are journaled", len(w.journal.results))
	}
}

func TestAgentsCredentialsStayBehind(t *testing.T) {
	seen := make(chan http.Header, 1)
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		rw.WriteHeader(http.StatusTeapot)
	}))
	for _, path := range paths {
		_, token := w.run()
		if r := w.post(path, token, request(false, "q")); r.status != http.StatusTeapot {
			t.Fatalf("%s: the provider's status is not passed on: %+v", path, r)
		}
		header := <-seen
		for name, values := range header {
			for _, value := range values {
				if strings.Contains(value, "agent") || strings.Contains(value, token) {
					t.Errorf("%s: the provider got %s: %s", path, name, value)
				}
			}
		}
		if header.Get("Authorization") != "Bearer "+realKey && header.Get("X-Api-Key") != realKey {
			t.Errorf("%s: the account's key is missing: %v", path, header)
		}
	}
}

func TestReleasedTurnEndsItsCalls(t *testing.T) {
	arrived := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body) // or the server does not notice that the client leaves
		close(arrived)
		<-r.Context().Done()
	}))
	token, release := w.turns.Register(millrace.NewTurn(millrace.TurnConfig{}))
	done := make(chan reply, 1)
	go func() { done <- w.post(paths[0], token, request(false, "q")) }()
	<-arrived
	release()
	if r := <-done; r.status != http.StatusServiceUnavailable {
		t.Errorf("got %+v", r)
	}
}

func TestOnlyLoopbackIsListenedOn(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:0": true, "localhost:0": true, "[::1]:8090": true, "127.5.5.5:1": true,
		":8090": false, "0.0.0.0:8090": false, "[::]:0": false, "192.0.2.1:80": false, "example.com:80": false, "127.0.0.1": false, "": false,
	} {
		if err := CheckAddr(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
	if _, err := Listen(t.Context(), "0.0.0.0:0"); err == nil {
		t.Error("listened on all addresses")
	}
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestNewReportsAllThatIsWrong(t *testing.T) {
	_, err := New(Config{MaxBody: -1})
	for _, want := range []string{"client: missing", "turns: missing", "max body -1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}
