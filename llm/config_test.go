package llm

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestNewReportsAllThatIsWrong(t *testing.T) {
	_, err := New(Config{
		Timeout: -1, MaxTokens: -1,
		Providers: []ProviderConfig{
			{Name: "Bad Name", BaseURL: "ftp://x", APIKey: "sk with space"},
			{Name: "a", Kind: "gemini"},
			{Name: "b", BaseURL: "http://user:secret@host"},
			{Name: "c"},
			{Name: "c"},
		},
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"limiter: missing", "timeout", "max tokens", "name: want", "want http://", "API key: contains", `kind "gemini"`, "want no user", `"c": named twice`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %q: %v", want, err)
		}
	}
	for _, secret := range []string{"sk with space", "secret@"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error contains %q", secret)
		}
	}
}

func TestBaseURLs(t *testing.T) {
	for _, c := range []struct {
		kind       Kind
		text, want string
	}{
		{OpenAI, "", "https://api.openai.com/v1"},
		{OpenAI, "http://host:1", "http://host:1/v1"},
		{OpenAI, "http://host:1/v1/", "http://host:1/v1"},
		{OpenAI, "http://host/api/v3", "http://host/api/v3"},
		{Anthropic, "", "https://api.anthropic.com"},
		{Anthropic, "http://host/v1", "http://host"},
		{Anthropic, "http://host/proxy/", "http://host/proxy"},
	} {
		if u, err := baseURL(c.kind, c.text); err != nil || u.String() != c.want {
			t.Errorf("%s %q: got %v, %v, want %s", c.kind, c.text, u, err, c.want)
		}
	}
}

func TestModelsAreFound(t *testing.T) {
	c, err := New(Config{
		Limiter: newRecorder(t), Model: "claude/haiku",
		Providers: []ProviderConfig{{Name: "fast"}, {Name: "claude", Kind: Anthropic}, {Name: "anthropic"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		model     string
		kind      Kind
		want      string
		wantError string
	}{
		{"", "", "claude/haiku", ""},
		{"gpt", "", "fast/gpt", ""},
		{"meta/llama", "", "fast/meta/llama", ""},
		{"anthropic/sonnet", "", "anthropic/sonnet", ""},
		{"sonnet", Anthropic, "claude/sonnet", ""},
		{"fast/gpt", Anthropic, "", "provider fast speaks the API of openai"},
	} {
		target, err := c.target(r.model, r.kind)
		if r.wantError != "" {
			if err == nil || !strings.Contains(err.Error(), r.wantError) {
				t.Errorf("%q: got %v, want %q", r.model, err, r.wantError)
			}
			continue
		}
		if err != nil || target.Provider.Name()+"/"+target.Model != r.want {
			t.Errorf("%q: got %+v, %v, want %s", r.model, target, err, r.want)
		}
	}
}

func TestRetryAfterIsRead(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name, value string
		want        time.Duration
	}{
		{"Retry-After", "2", 2 * time.Second},
		{"Retry-After", "0.5", 500 * time.Millisecond},
		{"Retry-After", "Thu, 01 Jan 2026 00:00:30 GMT", 30 * time.Second},
		{"Retry-After", "Thu, 01 Jan 2020 00:00:30 GMT", 0},
		{"Retry-After", "-1", 0},
		{"Retry-After", "soon", 0},
		{"Retry-After", "NaN", 0},
		{"Retry-After", "1e300", maxRetryAfter},
		{"Retry-After-Ms", "1500", 1500 * time.Millisecond},
		{"Retry-After-Ms", "Inf", maxRetryAfter},
	} {
		if got := RetryAfter(http.Header{c.name: {c.value}}, now); got != c.want {
			t.Errorf("%s: %s: got %s, want %s", c.name, c.value, got, c.want)
		}
	}
}

func TestEstimatesAreLearned(t *testing.T) {
	e := newEstimator()
	key := estimateKey{"chat", "openai", "m"}
	if got := e.output(key, 0); got != unknownOutput {
		t.Errorf("unknown: %d", got)
	}
	if got := e.output(key, 300); got != 300 {
		t.Errorf("unknown with a bound: %d", got)
	}
	for i := range int64(100) {
		e.learn(key, i+1)
	}
	if got := e.output(key, 0); got < 85 || got > 100 {
		t.Errorf("p95 of 1 to 100 is %d", got)
	}
	if got := e.output(key, 50); got != 50 {
		t.Errorf("over its bound: %d", got)
	}
	if got := e.output(estimateKey{"other", "openai", "m"}, 70); got != 70 {
		t.Errorf("another type: %d", got)
	}
	for range 2 * sampleSize {
		e.learn(key, 7)
	}
	if got := e.output(key, 0); got != 7 {
		t.Errorf("after the lengths changed: %d", got)
	}
}
