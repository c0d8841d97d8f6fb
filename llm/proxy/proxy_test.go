package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	anthropicsdk "github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	openaisdk "github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"go.uber.org/goleak"

	"millrace"
	"millrace/llm"
	"millrace/llm/sim"
	"millrace/ratelimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const realKey = "real"

type journal struct {
	mu      sync.Mutex
	results map[millrace.Step]millrace.StepResult
	err     error
}

func (j *journal) Begin(_ context.Context, s millrace.Step) (millrace.StepResult, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for other := range j.results {
		if other.Name == s.Name && other.RequestHash != s.RequestHash {
			return millrace.StepResult{}, false, &millrace.StepMismatchError{Step: s.Name}
		}
	}
	r, done := j.results[s]
	return r, done, nil
}

func (j *journal) Finish(_ context.Context, s millrace.Step, r millrace.StepResult) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	if j.results == nil {
		j.results = make(map[millrace.Step]millrace.StepResult)
	}
	j.results[s] = r
	return nil
}

// limiter counts freezes and can refuse.
type limiter struct {
	*ratelimit.Limiter
	mu      sync.Mutex
	freezes int
	err     error
}

func (l *limiter) Acquire(ctx context.Context, r ratelimit.Request) (*ratelimit.Grant, error) {
	if l.err != nil {
		return nil, l.err
	}
	return l.Limiter.Acquire(ctx, r)
}

func (l *limiter) Freeze(context.Context, string, string, time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.freezes++
	return nil
}

// world is a proxy between an agent and a provider.
type world struct {
	t       *testing.T
	proxy   *httptest.Server
	turns   *Turns
	limiter *limiter
	journal *journal
}

func newWorld(t *testing.T, provider http.Handler) *world {
	t.Helper()
	upstream := httptest.NewServer(provider)
	t.Cleanup(upstream.Close)
	l, err := ratelimit.New(ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, turns: &Turns{}, limiter: &limiter{Limiter: l}, journal: &journal{}}
	client, err := llm.New(llm.Config{
		Providers: []llm.ProviderConfig{
			{Name: "openai", BaseURL: upstream.URL, APIKey: realKey},
			{Name: "anthropic", BaseURL: upstream.URL, APIKey: realKey},
		},
		Limiter: w.limiter, HTTPClient: upstream.Client(), Timeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Client: client, Turns: w.turns, MaxBody: 4096})
	if err != nil {
		t.Fatal(err)
	}
	w.proxy = httptest.NewServer(p)
	t.Cleanup(w.proxy.Close)
	return w
}

func newSim(t *testing.T, cfg sim.Config) *sim.Simulator {
	t.Helper()
	cfg.Keys = map[string]sim.Limits{realKey: cfg.Limits}
	s, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run registers a new run of the task's turn and returns its token.
func (w *world) run() (*millrace.Turn, string) {
	turn := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "t1", Type: "chat"}, Journal: w.journal})
	token, release := w.turns.Register(turn)
	w.t.Cleanup(release)
	return turn, token
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error
}

func (w *world) post(path, token, body string) reply {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.proxy.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer agent")
	request.Header.Set("X-Api-Key", "agent")
	if token != "" {
		request.Header.Set(Header, token)
	}
	response, err := w.proxy.Client().Do(request)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(answer), err}
}

func request(stream bool, question string) string {
	return fmt.Sprintf(`{"model":"m","max_tokens":400,"stream":%v,"messages":[{"role":"user","content":%q}]}`, stream, question)
}

var paths = []string{"/v1/chat/completions", "/v1/messages"}

func (w *world) openAI(token string) openaisdk.Client {
	return openaisdk.NewClient(openaioption.WithBaseURL(w.proxy.URL+"/v1"), openaioption.WithAPIKey("agent"),
		openaioption.WithHTTPClient(w.proxy.Client()), openaioption.WithMaxRetries(0), openaioption.WithHeader(Header, token))
}

func (w *world) anthropic(token string) anthropicsdk.Client {
	return anthropicsdk.NewClient(anthropicoption.WithBaseURL(w.proxy.URL), anthropicoption.WithAPIKey("agent"),
		anthropicoption.WithHTTPClient(w.proxy.Client()), anthropicoption.WithMaxRetries(0), anthropicoption.WithHeader(Header, token))
}

var openAIParams = openaisdk.ChatCompletionNewParams{
	Model:    "openai/m",
	Messages: []openaisdk.ChatCompletionMessageParamUnion{openaisdk.UserMessage("how are you?")},
}

var anthropicParams = anthropicsdk.MessageNewParams{
	Model: "m", MaxTokens: 400,
	Messages: []anthropicsdk.MessageParam{anthropicsdk.NewUserMessage(anthropicsdk.NewTextBlock("how are you?"))},
}

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
	if len(calls) != 2 || calls[0].Model != "m" || calls[0].Key != realKey {
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

func TestBrokenAnswersAreErrorsAndNotJournaled(t *testing.T) {
	for name, faults := range map[string]sim.Faults{"cut": {Cut: 1}, "garbage": {Garbage: 1}} {
		for _, path := range paths {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %s stream %v", name, path, stream), func(t *testing.T) {
					s := newSim(t, sim.Config{Faults: faults})
					w := newWorld(t, s.Handler())
					_, token := w.run()
					r := w.post(path, token, request(stream, "q"))
					if cut := r.err != nil && r.status == 200; !cut && r.status != http.StatusBadGateway {
						t.Errorf("the agent could take this for an answer: %+v", r)
					}
					if len(w.journal.results) != 0 {
						t.Error("it is journaled")
					}
					if err := s.SetFaults(sim.Faults{}); err != nil {
						t.Fatal(err)
					}
					_, token = w.run()
					if r := w.post(path, token, request(stream, "q")); r.status != 200 || r.err != nil {
						t.Errorf("the next run: %+v", r)
					}
				})
			}
		}
	}
}

func TestCutStreamIsAnErrorToTheOfficialClient(t *testing.T) {
	w := newWorld(t, newSim(t, sim.Config{Faults: sim.Faults{Cut: 1}}).Handler())
	_, token := w.run()
	client := w.openAI(token)
	stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams)
	chunks := 0
	for stream.Next() {
		chunks++
	}
	if stream.Err() == nil || chunks == 0 {
		t.Fatalf("%d chunks and error %v", chunks, stream.Err())
	}
}

func TestStreamEndsOnlyOnceItIsJournaled(t *testing.T) {
	for _, path := range paths {
		w := newWorld(t, newSim(t, sim.Config{}).Handler())
		w.journal.err = errors.New("disk full")
		_, token := w.run()
		r := w.post(path, token, request(true, "q"))
		if r.err == nil || strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, "message_stop") {
			t.Errorf("%s: the agent got a whole answer that no journal has: %+v", path, r)
		}
	}
}

func TestErrorInAStreamIsPassedOn(t *testing.T) {
	for path, events := range map[string]string{
		paths[0]: "data: {\"id\":\"x\",\"choices\":[{\"delta\":{}}]}\n\ndata: {\"error\":{\"message\":\"overloaded\"}}\n\n",
		paths[1]: "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"overloaded\"}}\n\n",
	} {
		w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(rw, events)
		}))
		_, token := w.run()
		if r := w.post(path, token, request(true, "q")); !strings.Contains(r.body, "overloaded") || r.err == nil {
			t.Errorf("%s: %+v", path, r)
		}
		if len(w.journal.results) != 0 {
			t.Errorf("%s: it is journaled", path)
		}
	}
}

func TestChunksArriveAsTheyCome(t *testing.T) {
	next := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(rw, "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"%d\"}}]}\n\n", i)
			_ = http.NewResponseController(rw).Flush()
			<-next
		}
		_, _ = io.WriteString(rw, "data: [DONE]") // without its empty line
	}))
	_, token := w.run()
	client := w.openAI(token)
	stream := client.Chat.Completions.NewStreaming(t.Context(), openAIParams)
	for i := range 3 {
		if !stream.Next() || stream.Current().Choices[0].Delta.Content != fmt.Sprint(i) {
			t.Fatalf("chunk %d: %+v, %v", i, stream.Current(), stream.Err())
		}
		next <- struct{}{}
	}
	if stream.Next() || stream.Err() != nil {
		t.Fatalf("after the end: %v", stream.Err())
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

func FuzzReadEvent(f *testing.F) {
	f.Add([]byte("data: {}\n\n"))
	f.Add([]byte("event: a\r\ndata: 1\r\ndata: 2\r\n\r\ndata: [DONE]"))
	f.Add([]byte(": comment\n\n\ndata:x"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var all []byte
		r := bufio.NewReader(bytes.NewReader(stream))
		for {
			raw, data, err := readEvent(r)
			if err != nil {
				break
			}
			if len(raw) == 0 || len(data) > len(raw) {
				t.Fatalf("event %q with data %q", raw, data)
			}
			all = append(all, raw...)
		}
		if !bytes.HasPrefix(stream, all) {
			t.Fatalf("read %q from %q", all, stream)
		}
	})
}
