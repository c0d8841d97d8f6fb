package app

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/redis/go-redis/v9"

	"millrace"
	"millrace/internal/handler"
	"millrace/internal/ops"
	"millrace/internal/settings"
	"millrace/llm"
	"millrace/llm/proxy"
	"millrace/ratelimit"
)

// llmStack is a worker's way to LLMs: limiter, client and proxy. Without
// providers it has neither client nor proxy.
type llmStack struct {
	client *llm.Client
	turns  *proxy.Turns
	proxy  *llmProxy
}

func newLLMStack(ctx context.Context, p *Process, rdb redis.UniversalClient) (*llmStack, error) {
	l := &llmStack{turns: p.Turns}
	if l.turns == nil {
		l.turns = &proxy.Turns{}
	}
	s := &p.Settings
	if len(s.LLMProviders) == 0 {
		return l, nil
	}
	limiter, err := newLimiter(ctx, p, rdb)
	if err != nil {
		return nil, err
	}
	cfg := llm.Config{Model: s.LLMModel, Limiter: limiter, Timeout: s.LLMTimeout, Logger: p.Log, Metrics: p.Metrics}
	for _, provider := range s.LLMProviders {
		cfg.Providers = append(cfg.Providers, llm.ProviderConfig{
			Name: provider.Name, Kind: llm.Kind(provider.Kind), BaseURL: provider.BaseURL, APIKey: provider.APIKey.Reveal(),
		})
	}
	if l.client, err = llm.New(cfg); err != nil {
		return nil, fmt.Errorf("LLM client: %w", err)
	}
	if s.LLMProxyAddr == "" || s.LLMProxyAddr == "off" {
		return l, nil
	}
	l.proxy, err = newLLMProxy(ctx, p, l)
	return l, err
}

// newLimiter returns the limiter that all workers share. Limits that the process
// brings along, rather than the limits file, are of an account that nobody has
// used yet.
func newLimiter(ctx context.Context, p *Process, rdb redis.UniversalClient) (*ratelimit.Limiter, error) {
	limits := p.Limits
	if p.Settings.LimitsFile != "" {
		var err error
		if limits, err = ratelimit.LoadLimits(p.Settings.LimitsFile); err != nil {
			return nil, fmt.Errorf("MILLRACE_LIMITS_FILE: %w", err)
		}
	}
	limiter, err := ratelimit.New(ratelimit.Config{
		Redis: rdb, Limits: limits, Priorities: p.Settings.Priorities, Logger: p.Log, Metrics: p.Metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("limiter: %w", err)
	}
	if p.Settings.LimitsFile == "" {
		for _, limit := range limits {
			if err := limiter.StartUnspent(ctx, limit.Account); err != nil {
				return nil, fmt.Errorf("limiter: %w", err)
			}
		}
	}
	return limiter, nil
}

// builtin returns the handler that the settings name.
func (l *llmStack) builtin(s *settings.Settings) (millrace.Handler, error) {
	switch s.Handler {
	case "echo":
		return handler.Echo{}, nil
	case "http":
		return handler.NewHTTP(s.HandlerURL, l.turns), nil
	case "agent":
		if l.client == nil {
			return nil, errors.New("MILLRACE_HANDLER=agent needs a provider: set MILLRACE_LLM_<NAME>_BASE_URL or MILLRACE_LLM_OPENAI_API_KEY, and MILLRACE_LLM_MODEL")
		}
		return handler.Agent{LLM: l.client}, nil
	}
	return nil, fmt.Errorf("unknown handler %q", s.Handler)
}

type llmKey struct{}

// inContext makes the client known to a handler and what it calls.
func (l *llmStack) inContext(h millrace.Handler) millrace.Handler {
	return millrace.HandlerFunc(func(ctx context.Context, turn *millrace.Turn) error {
		return h.Handle(context.WithValue(ctx, llmKey{}, l.client), turn)
	})
}

// LLM returns the LLM client of the worker that runs the turn of ctx, or nil
// when it has no provider.
func LLM(ctx context.Context) *llm.Client {
	client, _ := ctx.Value(llmKey{}).(*llm.Client)
	return client
}

func (l *llmStack) close() {
	if l.proxy != nil {
		l.proxy.close()
	}
}

// llmProxy is the loopback address where agents call LLMs.
type llmProxy struct {
	listener net.Listener
	handler  *proxy.Proxy
}

func newLLMProxy(ctx context.Context, p *Process, l *llmStack) (*llmProxy, error) {
	handler, err := proxy.New(proxy.Config{Client: l.client, Turns: l.turns, Logger: p.Log})
	if err != nil {
		return nil, fmt.Errorf("LLM proxy: %w", err)
	}
	if err := proxy.CheckAddr(p.Settings.LLMProxyAddr); err != nil {
		return nil, fmt.Errorf("MILLRACE_LLM_PROXY_ADDR: %w", err)
	}
	listener, err := ops.Listen(ctx, p.Settings.LLMProxyAddr, "MILLRACE_LLM_PROXY_ADDR")
	if err != nil {
		return nil, err
	}
	p.Log.Info().Str("addr", listener.Addr().String()).Msg("LLM proxy listens")
	return &llmProxy{listener: listener, handler: handler}, nil
}

func (p *llmProxy) run(ctx context.Context) error {
	return (&ops.Server{Handler: p.handler}).Serve(ctx, p.listener)
}

func (p *llmProxy) close() { _ = p.listener.Close() } // Serve has closed it, if it ran

func (p *llmProxy) addr() string { return p.listener.Addr().String() }
