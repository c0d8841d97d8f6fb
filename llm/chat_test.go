package llm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"millrace"
	"millrace/llm/sim"
	"millrace/ratelimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "sk-very-secret-0123456789"

// recorder is a limiter without limits that records what it is told.
type recorder struct {
	*ratelimit.Limiter
	mu       sync.Mutex
	requests []ratelimit.Request
	frozen   []time.Duration
	err      error
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	l, err := ratelimit.New(ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return &recorder{Limiter: l}
}

func (r *recorder) Acquire(ctx context.Context, request ratelimit.Request) (*ratelimit.Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, request)
	if r.err != nil {
		return nil, r.err
	}
	return r.Limiter.Acquire(ctx, request)
}

func (r *recorder) Freeze(_ context.Context, account, model string, d time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if account == "" || model == "" {
		return fmt.Errorf("freeze of account %q, model %q", account, model)
	}
	r.frozen = append(r.frozen, d)
	return nil
}

// journal is a millrace.Journal in memory.
type journal struct {
	mu      sync.Mutex
	results map[millrace.Step]millrace.StepResult
}

func (j *journal) Begin(_ context.Context, s millrace.Step) (millrace.StepResult, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r, done := j.results[s]
	return r, done, nil
}

func (j *journal) Finish(_ context.Context, s millrace.Step, r millrace.StepResult) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.results == nil {
		j.results = make(map[millrace.Step]millrace.StepResult)
	}
	j.results[s] = r
	return nil
}

func newTurn(j millrace.Journal) *millrace.Turn {
	return millrace.NewTurn(millrace.TurnConfig{
		Task:         millrace.Task{ID: "t1", Type: "chat", Tenant: "acme", Priority: millrace.High, Conversation: "c1"},
		Conversation: millrace.Conversation{ID: "c1"},
		Journal:      j,
	})
}

// providers serves a handler as a provider of each kind.
func providers(t *testing.T, h http.Handler) []ProviderConfig {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return []ProviderConfig{
		{Name: "openai", BaseURL: server.URL, APIKey: testKey},
		{Name: "anthropic", BaseURL: server.URL, APIKey: testKey},
	}
}

func newClient(t *testing.T, limiter Limiter, h http.Handler) *Client {
	t.Helper()
	c, err := New(Config{Providers: providers(t, h), Model: "m", Limiter: limiter, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func newSim(t *testing.T, cfg sim.Config) *sim.Simulator {
	t.Helper()
	s, err := sim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ask(model, question string) ChatRequest {
	return ChatRequest{
		Model:     model,
		Messages:  []Message{{millrace.RoleSystem, "be kind"}, {millrace.RoleUser, "hi"}, {millrace.RoleAssistant, "hi"}, {millrace.RoleUser, question}},
		MaxTokens: 400,
	}
}

var models = []string{"openai/m", "anthropic/m"}

func TestChatAnswersAndCounts(t *testing.T) {
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			limiter := newRecorder(t)
			c := newClient(t, limiter, newSim(t, sim.Config{}).Handler())
			turn := newTurn(nil)
			response, err := c.Chat(t.Context(), turn, ask(model, "how are you?"))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(response.Content, sim.Echo("how are you?")) || response.FinishReason == "" || response.ID == "" {
				t.Errorf("response %+v", response)
			}
			want := millrace.Usage{Calls: 1, InputTokens: response.InputTokens, OutputTokens: response.OutputTokens}
			if usage := turn.Effects().Usage; usage != want || usage.OutputTokens == 0 {
				t.Errorf("the turn counts %+v, the response %+v", usage, want)
			}
			r := limiter.requests[0]
			if r.Account != response.Provider || r.Model != "m" || r.Tenant != "acme" || r.Priority != millrace.High ||
				r.InputTokens < response.InputTokens || r.OutputTokens != 400 {
				t.Errorf("asked the limiter for %+v", r)
			}
		})
	}
}

func TestJournaledAnswerIsNotPaidForAgain(t *testing.T) {
	s := newSim(t, sim.Config{})
	c := newClient(t, newRecorder(t), s.Handler())
	j := &journal{}
	first, err := c.Chat(t.Context(), newTurn(j), ask("", "q"))
	if err != nil {
		t.Fatal(err)
	}
	turn := newTurn(j)
	second, err := c.Chat(t.Context(), turn, ask("openai/m", "q")) // the same model by its full name
	if err != nil {
		t.Fatal(err)
	}
	if first != second || turn.Effects().Usage.OutputTokens != first.OutputTokens {
		t.Errorf("first %+v, then %+v, usage %+v", first, second, turn.Effects().Usage)
	}
	if n := s.Summary().Calls; n != 1 {
		t.Errorf("the provider saw %d calls", n)
	}
	if _, err := c.Chat(t.Context(), turn, ask("", "another")); err != nil {
		t.Fatal(err)
	}
	if n := s.Summary().Calls; n != 2 {
		t.Errorf("the provider saw %d calls after another question", n)
	}
}

func TestRefusalFreezesAndDelays(t *testing.T) {
	for _, model := range models {
		t.Run(model, func(t *testing.T) {
			limiter := newRecorder(t)
			c := newClient(t, limiter, newSim(t, sim.Config{Limits: sim.Limits{RequestsPerMinute: 1}}).Handler())
			if _, err := c.Chat(t.Context(), newTurn(nil), ask(model, "q")); err != nil {
				t.Fatal(err)
			}
			_, err := c.Chat(t.Context(), newTurn(nil), ask(model, "q"))
			var delayed *millrace.RetryAfterError
			if !errors.As(err, &delayed) || delayed.Delay < 50*time.Second || delayed.Delay > time.Minute {
				t.Errorf("got %v, want a delay of about a minute", err)
			}
			if len(limiter.frozen) != 1 || limiter.frozen[0] != delayed.Delay {
				t.Errorf("froze for %v", limiter.frozen)
			}
		})
	}
}

func TestErrorsSayWhatARetryIsGoodFor(t *testing.T) {
	status := func(code int, header http.Header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for name, values := range header {
				w.Header()[name] = values
			}
			w.WriteHeader(code)
			_, _ = fmt.Fprint(w, body)
		}
	}
	json := http.Header{"Content-Type": {"application/json"}}
	message := `{"type":"error","error":{"type":"x","message":"no such ` + testKey + ` here"}}`
	for name, c := range map[string]struct {
		answer    http.HandlerFunc
		permanent bool
		delay     time.Duration
		want      string
	}{
		"400":                   {answer: status(400, json, message), permanent: true, want: "status 400: no such *** here"},
		"401":                   {answer: status(401, json, message), permanent: true, want: "status 401"},
		"404 not JSON":          {answer: status(404, nil, "<html>"), permanent: true, want: "status 404"},
		"408":                   {answer: status(408, json, message), want: "status 408"},
		"429 not JSON":          {answer: status(429, http.Header{"Retry-After": {"7"}}, "slow down"), delay: 7 * time.Second, want: "status 429"},
		"429 without a time":    {answer: status(429, json, message), delay: defaultRetryAfter, want: "status 429"},
		"429 in milliseconds":   {answer: status(429, http.Header{"Retry-After": {"1"}, "Retry-After-Ms": {"250"}}, message), delay: 250 * time.Millisecond, want: "status 429"},
		"500":                   {answer: status(500, json, message), want: "status 500: no such *** here"},
		"503 not JSON":          {answer: status(503, nil, "<html>"), want: "status 503"},
		"529 with a time":       {answer: status(529, http.Header{"Retry-After": {"3"}}, message), delay: 3 * time.Second, want: "status 529"},
		"redirect":              {answer: status(307, http.Header{"Location": {"http://192.0.2.1/"}}, ""), want: ""},
		"not JSON":              {answer: status(200, json, "{<html>"), want: ""},
		"JSON of another shape": {answer: status(200, json, "{}"), want: "provider's answer"},
	} {
		for _, model := range models {
			t.Run(name+" from "+model, func(t *testing.T) {
				client := newClient(t, newRecorder(t), c.answer)
				var answered reached
				turn := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "t1", Type: "chat"}, Dependencies: &answered})
				_, err := client.Chat(t.Context(), turn, ask(model, "q"))
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v, want %q in it", err, c.want)
				}
				dependency := "llm/" + strings.Split(model, "/")[0]
				wantOutage, wantReached := dependency, ""
				if !strings.HasPrefix(name, "5") {
					wantOutage = ""
				}
				if strings.HasPrefix(name, "4") {
					wantReached = dependency
				}
				if got := millrace.DependencyOf(err); got != wantOutage {
					t.Errorf("outage of %q, want %q", got, wantOutage)
				}
				if !strings.HasPrefix(name, "redirect") && string(answered) != wantReached {
					t.Errorf("reached %q, want %q", answered, wantReached)
				}
				if strings.Contains(fmt.Sprintf("%v %+v", err, err), testKey) {
					t.Errorf("error %v contains the key", err)
				}
				if millrace.IsPermanent(err) != c.permanent {
					t.Errorf("permanent %v, want %v: %v", !c.permanent, c.permanent, err)
				}
				var delayed *millrace.RetryAfterError
				if got := errors.As(err, &delayed); got != (c.delay > 0) || got && delayed.Delay != c.delay {
					t.Errorf("got %v, want a delay of %s", err, c.delay)
				}
			})
		}
	}
}

// reached is the dependency that has answered.
type reached string

func (r *reached) Reached(_ *millrace.Task, dependency string) { *r = reached(dependency) }

func TestProviderThatCannotBeConnectedToIsOutAndOneThatAnswersIsNot(t *testing.T) {
	for _, model := range models {
		dependency := "llm/" + strings.Split(model, "/")[0]
		var answered reached
		turn := millrace.NewTurn(millrace.TurnConfig{Task: millrace.Task{ID: "t1", Type: "chat"}, Dependencies: &answered})
		c := newClient(t, newRecorder(t), newSim(t, sim.Config{}).Handler())
		if _, err := c.Chat(t.Context(), turn, ask(model, "q")); err != nil || string(answered) != dependency {
			t.Errorf("%s: %v, reached %q", model, err, answered)
		}
		answered = ""
		gone := httptest.NewServer(http.NotFoundHandler())
		p := providers(t, http.NotFoundHandler())
		for i := range p {
			p[i].BaseURL = gone.URL
		}
		gone.Close()
		c, err := New(Config{Providers: p, Limiter: newRecorder(t)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Chat(t.Context(), turn, ask(model, "q")); millrace.DependencyOf(err) != dependency || answered != "" {
			t.Errorf("%s: %v, outage of %q, reached %q", model, err, millrace.DependencyOf(err), answered)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Chat(ended, turn, ask(model, "q")); millrace.IsUnavailable(err) {
			t.Errorf("%s: a turn that is over takes its provider for out: %v", model, err)
		}
	}
}

func TestFaultsAreRetryable(t *testing.T) {
	for name, faults := range map[string]sim.Faults{
		"5xx": {ServerError: 1}, "cut": {Cut: 1}, "garbage": {Garbage: 1}, "hang": {Hang: 1},
	} {
		for _, model := range models {
			t.Run(name+" from "+model, func(t *testing.T) {
				c := newClient(t, newRecorder(t), newSim(t, sim.Config{Faults: faults}).Handler())
				c.timeout = 100 * time.Millisecond
				_, err := c.Chat(t.Context(), newTurn(nil), ask(model, "q"))
				if err == nil || millrace.IsPermanent(err) {
					t.Fatalf("got %v, want an error that a retry may cure", err)
				}
			})
		}
	}
}

func TestRequestsThatCannotSucceedArePermanent(t *testing.T) {
	limiter := newRecorder(t)
	c := newClient(t, limiter, http.NotFoundHandler())
	for name, r := range map[string]ChatRequest{
		"no messages":  {},
		"unknown role": {Messages: []Message{{"robot", "q"}}},
		"negative":     {Messages: []Message{{"user", "q"}}, MaxTokens: -1},
	} {
		if _, err := c.Chat(t.Context(), newTurn(nil), r); !millrace.IsPermanent(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	limiter.err = fmt.Errorf("%w: 5 of 4", ratelimit.ErrTooLarge)
	if _, err := c.Chat(t.Context(), newTurn(nil), ask("", "q")); !millrace.IsPermanent(err) {
		t.Errorf("too large: got %v", err)
	}
	limiter.err = ratelimit.ErrUnavailable
	if _, err := c.Chat(t.Context(), newTurn(nil), ask("", "q")); err == nil || millrace.IsPermanent(err) {
		t.Errorf("unavailable: got %v", err)
	}
}

func TestCallsAreTracedAndMeasured(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	defer otel.SetTracerProvider(before)
	registry := prometheus.NewRegistry()
	s := newSim(t, sim.Config{})
	c, err := New(Config{Providers: providers(t, s.Handler()), Limiter: newRecorder(t), Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer c.http.CloseIdleConnections()
	if _, err := c.Chat(t.Context(), newTurn(nil), ask("anthropic/m", "q")); err != nil {
		t.Fatal(err)
	}
	if err := s.SetFaults(sim.Faults{ServerError: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Chat(t.Context(), newTurn(nil), ask("anthropic/m", "q")); err == nil {
		t.Fatal("no error")
	}
	ended := spans.Ended()
	if len(ended) != 2 {
		t.Fatalf("%d spans", len(ended))
	}
	attributes := make(map[string]string)
	for _, a := range ended[0].Attributes() {
		attributes[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{
		"gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "m",
		"gen_ai.request.max_tokens": "400", "gen_ai.conversation.id": "c1", "server.address": "127.0.0.1",
		"gen_ai.response.model": "m", "gen_ai.response.finish_reasons": `["end_turn"]`,
	} {
		if attributes[key] != want {
			t.Errorf("attribute %s is %q, want %q", key, attributes[key], want)
		}
	}
	if attributes["gen_ai.usage.output_tokens"] == "" || ended[0].Name() != "chat m" {
		t.Errorf("span %s with %v", ended[0].Name(), attributes)
	}
	if n := testutil.ToFloat64(c.metrics.calls.WithLabelValues("anthropic", "m", outcomeOK)); n != 1 {
		t.Errorf("%v calls counted as ok", n)
	}
	if n := testutil.ToFloat64(c.metrics.calls.WithLabelValues("anthropic", "m", outcomeServerError)); n != 1 {
		t.Errorf("%v calls counted as server errors", n)
	}
	if _, err := New(Config{Providers: providers(t, s.Handler()), Limiter: newRecorder(t), Metrics: registry}); err == nil {
		t.Error("metrics were registered twice")
	}
}
