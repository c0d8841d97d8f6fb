package llm

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
)

// Provider is an account to call.
type Provider struct {
	name      string
	kind      Kind
	base      *url.URL
	key       string
	http      *http.Client
	openai    openai.ChatCompletionService
	anthropic anthropic.MessageService
}

// connect makes the SDK's client. Services are made without the SDKs' defaults,
// which read the environment.
func (p *Provider) connect() {
	base := p.base.String() + "/"
	switch p.kind {
	case OpenAI:
		p.openai = openai.NewChatCompletionService(
			openaioption.WithBaseURL(base),
			openaioption.WithAPIKey(p.key),
			openaioption.WithMaxRetries(0),
			openaioption.WithHTTPClient(p.http))
	case Anthropic:
		p.anthropic = anthropic.NewMessageService(
			anthropicoption.WithBaseURL(base),
			anthropicoption.WithAPIKey(p.key),
			anthropicoption.WithMaxRetries(0),
			anthropicoption.WithoutOpenTelemetry(), // every call has a span of ours
			anthropicoption.WithHTTPClient(p.http))
	}
}

// Name is the account's name.
func (p *Provider) Name() string { return p.name }

// dependency is what an outage of the provider is called.
func (p *Provider) dependency() string { return "llm/" + p.name }

// Kind is the API that the provider speaks.
func (p *Provider) Kind() Kind { return p.kind }

// Do sends a request to a path of the provider's API, with the account's key and
// no other. The path is relative to the base URL.
func (p *Provider) Do(r *http.Request, path string) (*http.Response, error) {
	r = r.Clone(r.Context())
	u := *p.base
	u.Path, u.RawPath = u.Path+"/"+path, "" // JoinPath leaves out the first slash
	r.URL = &u
	r.Host, r.RequestURI = "", ""
	r.Header.Del("Authorization")
	r.Header.Del("X-Api-Key")
	if p.key != "" {
		switch p.kind {
		case OpenAI:
			r.Header.Set("Authorization", "Bearer "+p.key)
		case Anthropic:
			r.Header.Set("X-Api-Key", p.key)
		}
	}
	response, err := p.http.Do(r) //nolint:gosec // the URL is the configured one
	if err != nil {
		return nil, p.scrub(err)
	}
	return response, nil
}

// scrubbedError is an error whose text had the key in it.
type scrubbedError struct {
	text string
	err  error
}

func (e *scrubbedError) Error() string { return e.text }

// Unwrap keeps the cause for errors.Is and errors.As.
func (e *scrubbedError) Unwrap() error { return e.err }

func (p *Provider) scrub(err error) error {
	if text := err.Error(); p.key != "" && strings.Contains(text, p.key) {
		return &scrubbedError{p.scrubText(text), err}
	}
	return err
}

func (p *Provider) scrubText(text string) string {
	if p.key == "" {
		return text
	}
	return strings.ReplaceAll(text, p.key, "***")
}

// Target is a model of a provider.
type Target struct {
	Provider *Provider
	Model    string
}

// Target finds the model that a request names: "name/model" where name is a
// provider's, or a model of the first provider, or for "" the default model.
func (c *Client) Target(model string) (Target, error) {
	return c.target(model, "")
}

// TargetOfKind is [Client.Target] among the providers of one kind.
func (c *Client) TargetOfKind(model string, kind Kind) (Target, error) {
	return c.target(model, kind)
}

func (c *Client) target(model string, kind Kind) (Target, error) {
	if model == "" {
		model = c.model
	}
	if model == "" {
		return Target{}, errors.New("model: missing, and there is no default model")
	}
	if name, rest, ok := strings.Cut(model, "/"); ok && rest != "" {
		for _, p := range c.providers {
			if p.name != name {
				continue
			}
			if kind != "" && p.kind != kind {
				return Target{}, fmt.Errorf("model %q: provider %s speaks the API of %s, not of %s", model, name, p.kind, kind)
			}
			return Target{p, rest}, nil
		}
	}
	for _, p := range c.providers {
		if kind == "" || p.kind == kind {
			return Target{p, model}, nil
		}
	}
	return Target{}, fmt.Errorf("model %q: no provider speaks the API of %s", model, kind)
}
