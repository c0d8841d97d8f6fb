package llm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"millrace/ratelimit"
)

// Kind is the API that a provider speaks.
type Kind string

// The kinds of providers.
const (
	OpenAI    Kind = "openai"
	Anthropic Kind = "anthropic"
)

// Defaults of [Config].
const (
	DefaultTimeout   = 5 * time.Minute
	DefaultMaxTokens = 4096
)

// Limiter keeps all workers together under the providers' limits. A
// [*ratelimit.Limiter] is one.
type Limiter interface {
	Acquire(ctx context.Context, r ratelimit.Request) (*ratelimit.Grant, error)
	Freeze(ctx context.Context, account, model string, retryAfter time.Duration) error
}

// ProviderConfig is an account at a provider.
type ProviderConfig struct {
	// Name is the account's name in models ("name/model"), limits and metrics.
	// Required: 1 to 32 lower-case letters, digits and dashes.
	Name string
	// Kind is the API that it speaks. Empty means [Anthropic] for the name
	// "anthropic" and [OpenAI] for all others.
	Kind Kind
	// BaseURL is where the API is. Empty means the provider's own; a URL without a
	// path gets the kind's.
	BaseURL string
	// APIKey authorises calls. It appears in no log and no error.
	APIKey string
}

// Config configures a [Client].
type Config struct {
	// Providers are the accounts to call, the default one first. At least one.
	Providers []ProviderConfig
	// Model is what requests that name none use: "name/model", or a model of the
	// first provider. Empty: every request names its own.
	Model string
	// Limiter grants calls. Required; one without limits grants all.
	Limiter Limiter
	// Timeout bounds one call, from its grant on. 0 means [DefaultTimeout].
	Timeout time.Duration
	// MaxTokens bounds the answer of a request that says nothing about it, where
	// the provider wants a bound. 0 means [DefaultMaxTokens].
	MaxTokens int64
	// HTTPClient calls the providers. Nil means one of the package's own.
	HTTPClient *http.Client

	Logger zerolog.Logger
	// Metrics registers the client's metrics. Nil: they are not registered.
	Metrics prometheus.Registerer
}

// Client calls LLM providers for turns. Its methods may be called from many
// goroutines.
type Client struct {
	providers []*Provider
	model     string
	limiter   Limiter
	timeout   time.Duration
	maxTokens int64
	http      *http.Client
	estimator *estimator
	log       zerolog.Logger
	metrics   *metrics
}

// New returns a client. It calls nobody.
func New(cfg Config) (*Client, error) {
	var errs []error
	c := &Client{
		model:     cfg.Model,
		limiter:   cfg.Limiter,
		timeout:   cfg.Timeout,
		maxTokens: cfg.MaxTokens,
		http:      cfg.HTTPClient,
		estimator: newEstimator(),
		log:       cfg.Logger,
	}
	if len(cfg.Providers) == 0 {
		errs = append(errs, errors.New("providers: want at least one"))
	}
	if cfg.Limiter == nil {
		errs = append(errs, errors.New("limiter: missing"))
	}
	if cfg.Timeout < 0 {
		errs = append(errs, fmt.Errorf("timeout %s: negative", cfg.Timeout))
	}
	if cfg.MaxTokens < 0 {
		errs = append(errs, fmt.Errorf("max tokens %d: negative", cfg.MaxTokens))
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.maxTokens == 0 {
		c.maxTokens = DefaultMaxTokens
	}
	if c.http == nil {
		c.http = newHTTPClient()
	}
	names := make(map[string]bool)
	for _, pc := range cfg.Providers {
		p, err := newProvider(pc, c.http)
		if err != nil {
			errs = append(errs, fmt.Errorf("provider %q: %w", pc.Name, err))
			continue
		}
		if names[p.name] {
			errs = append(errs, fmt.Errorf("provider %q: named twice", p.name))
		}
		names[p.name] = true
		c.providers = append(c.providers, p)
	}
	var err error
	if c.metrics, err = newMetrics(cfg.Metrics); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("llm client: %w", err)
	}
	return c, nil
}

// newHTTPClient keeps enough idle connections for a worker's slots, which all
// call the same few hosts. Redirects are not followed: a call, with its key, goes
// where it was configured to go.
func newHTTPClient() *http.Client {
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment}
	}
	transport = transport.Clone()
	transport.MaxIdleConns = 0
	transport.MaxIdleConnsPerHost = 256
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var providerName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func newProvider(cfg ProviderConfig, client *http.Client) (*Provider, error) {
	var errs []error
	if !providerName.MatchString(cfg.Name) {
		errs = append(errs, errors.New("name: want 1 to 32 lower-case letters, digits and dashes"))
	}
	p := &Provider{name: cfg.Name, kind: cfg.Kind, key: cfg.APIKey, http: client}
	if p.kind == "" {
		p.kind = OpenAI
		if cfg.Name == string(Anthropic) {
			p.kind = Anthropic
		}
	}
	if p.kind != OpenAI && p.kind != Anthropic {
		errs = append(errs, fmt.Errorf("kind %q: want %s or %s", cfg.Kind, OpenAI, Anthropic))
		return nil, errors.Join(errs...)
	}
	base, err := baseURL(p.kind, cfg.BaseURL)
	if err != nil {
		errs = append(errs, fmt.Errorf("base URL: %w", err))
	}
	p.base = base
	if strings.ContainsFunc(cfg.APIKey, func(r rune) bool { return r <= ' ' || r > '~' }) {
		errs = append(errs, errors.New("API key: contains white space or other characters that no header can carry"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	p.connect()
	return p, nil
}

// baseURL returns the root under which the kind's paths lie, without a trailing
// slash: OpenAI's SDKs want the version in it, Anthropic's add it themselves.
func baseURL(kind Kind, text string) (*url.URL, error) {
	if text == "" {
		text = map[Kind]string{OpenAI: "https://api.openai.com/v1", Anthropic: "https://api.anthropic.com"}[kind]
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("not a URL")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, errors.New("want http://… or https://…")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("want no user, query or fragment in it")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	switch kind {
	case OpenAI:
		if u.Path == "" {
			u.Path = "/v1"
		}
	case Anthropic:
		u.Path = strings.TrimSuffix(u.Path, "/v1")
	}
	return u, nil
}
