package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"millrace/internal/ops"
	"millrace/internal/settings"
	"millrace/llm/sim"
)

func init() { register(newLLMSim) }

func newLLMSim(c *cli) *cobra.Command {
	var cfg sim.Config
	cmd := &cobra.Command{
		Use:   "llmsim",
		Short: "Simulate an LLM provider",
		Long: `Plays an LLM provider: OpenAI chat completions and Anthropic messages, streaming
too, with limits, latency and faults. Limits hold for each API key and are judged
over a sliding minute when a request arrives. GET /ledger lists every call,
GET /ledger/summary counts them, POST /reset forgets them.

A worker uses it with MILLRACE_LLM_SIM_BASE_URL=http://127.0.0.1:8089/v1 and
MILLRACE_LLM_MODEL=sim/any-name.`,
		Example: `  millrace llmsim --rpm 600 --tpm 200000 --latency 800ms --latency-jitter 200ms
  millrace llmsim --fault-5xx 0.02 --fault-hang 0.001`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.llmSim(cmd.Context(), cfg) },
	}
	flags := cmd.Flags()
	flags.Uint64Var(&cfg.Seed, "seed", 1, "seed of answers, latencies and faults")
	flags.Int64Var(&cfg.Limits.RequestsPerMinute, "rpm", 0, "requests a minute that a key may make; 0 is no limit")
	flags.Int64Var(&cfg.Limits.TokensPerMinute, "tpm", 0, "tokens a minute, input and output together, that a key may use; 0 is no limit")
	flags.Int64Var(&cfg.Limits.Concurrency, "concurrency", 0, "requests at once that a key may make; 0 is no limit")
	flags.IntVar(&cfg.AnswerTokens, "answer-tokens", sim.DefaultAnswerTokens, "mean length of an answer")
	flags.DurationVar(&cfg.Latency.Mean, "latency", 500*time.Millisecond, "mean time to answer")
	flags.DurationVar(&cfg.Latency.Jitter, "latency-jitter", 100*time.Millisecond, "standard deviation of that time")
	flags.DurationVar(&cfg.Latency.PerToken, "latency-per-token", 0, "further time for each token of the answer")
	flags.Float64Var(&cfg.Faults.ServerError, "fault-5xx", 0, "share of calls that are answered with 500")
	flags.Float64Var(&cfg.Faults.Hang, "fault-hang", 0, "share of calls that are never answered")
	flags.Float64Var(&cfg.Faults.Cut, "fault-cut", 0, "share of calls whose connection breaks half-way through")
	flags.Float64Var(&cfg.Faults.Garbage, "fault-garbage", 0, "share of calls that are answered with what is not JSON")
	return cmd
}

func (c *cli) llmSim(ctx context.Context, cfg sim.Config) error {
	c.serves = true
	s, err := c.settings(settings.RoleSimulator)
	if err != nil {
		return err
	}
	log, flush, err := c.logger(&s, nil)
	if err != nil {
		return err
	}
	defer flush()
	simulator, err := sim.New(cfg)
	if err != nil {
		return usageError{err}
	}
	l, err := ops.Listen(ctx, s.HTTPAddr, "MILLRACE_HTTP_ADDR")
	if err != nil {
		return err
	}
	log.Info().Str("addr", l.Addr().String()).Msg("simulator listens")
	return (&ops.Server{Handler: simulator.Handler()}).Serve(ctx, l)
}
