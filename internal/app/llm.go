package app

import (
	"context"

	"github.com/redis/go-redis/v9"

	"millrace"
	"millrace/internal/handler"
	"millrace/internal/settings"
)

type llmStack struct{ proxy *llmProxy }

type llmProxy struct{}

func (*llmProxy) run(context.Context) error { return nil }

func newLLMStack(context.Context, *Process, *redis.Client) (*llmStack, error) { return &llmStack{}, nil }

func (l *llmStack) builtin(s *settings.Settings) millrace.Handler {
	if s.Handler == "http" {
		return handler.NewHTTP(s.HandlerURL, nil)
	}
	return handler.Echo{}
}

func (l *llmStack) inContext(h millrace.Handler) millrace.Handler { return h }
func (l *llmStack) close()                                       {}
