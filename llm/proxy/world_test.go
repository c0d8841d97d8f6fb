package proxy

import (
	"context"
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
