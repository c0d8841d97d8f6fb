package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/internal/demo"
	"millrace/internal/embedded"
	"millrace/internal/ops"
	"millrace/internal/settings"
	"millrace/llm/sim"
)

func init() { register(newUp) }

// maxSimulatorRPM is more than a machine can send.
const maxSimulatorRPM = 1_000_000_000

type upFlags struct {
	data          string
	workers       int
	demo          bool
	exit          bool
	realLLM       bool
	input         string
	conversations int
	seed          uint64
	latency       time.Duration
	rpm           int64
}

func newUp(c *cli) *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process on embedded services",
		Long: `Runs the whole pipeline on this machine and needs nothing installed: a Kafka
protocol broker, Redis and PostgreSQL (this machine's programs where it has
them), a simulated LLM provider, the HTTP API, workers and their relays.

With --demo it sends conversations through the API, shows how they go, and judges
from outside, by the results topic and PostgreSQL, whether anything was lost,
came out twice or out of order. Then it serves on; with --exit it ends instead, with
exit code 1 if anything was, if the API refused a turn, if a line of the input
was broken, or if there was nothing to send.
The demo asks the simulated LLM, whatever provider is set; --real-llm has it ask
the provider that is set, which may cost money.

Without --data everything is thrown away at the end.`,
		Example: `  millrace up
  millrace up --demo --exit
  millrace up --demo --input conversations.ndjson.gz --data ./millrace-data`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for name, value := range map[string]string{"data": f.data, "input": f.input} {
				if value == "" && cmd.Flags().Changed(name) {
					return usage("--%s is empty: name a path or leave the flag out", name)
				}
			}
			return c.up(cmd.Context(), &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.data, "data", "", "keep the services' data in this `directory`")
	flags.IntVar(&f.workers, "workers", 2, "how many workers to run")
	flags.BoolVar(&f.demo, "demo", false, "send conversations, and judge what comes out")
	flags.BoolVar(&f.exit, "exit", false, "end after the demo's summary")
	flags.BoolVar(&f.realLLM, "real-llm", false, "have the demo ask the provider that is set rather than the simulated LLM: it may cost money")
	flags.StringVar(&f.input, "input", "", "conversations of the demo: an NDJSON `file`, gzip or not, or - for standard input")
	flags.IntVar(&f.conversations, "conversations", demo.DefaultConversations, "how many conversations to make up when there is no input")
	flags.Uint64Var(&f.seed, "seed", 1, "seed of the made-up conversations and of the simulator")
	flags.DurationVar(&f.latency, "llm-latency", 250*time.Millisecond, "mean time that the simulated LLM takes to answer")
	flags.Int64Var(&f.rpm, "llm-rpm", 30_000, "requests a minute that the simulated LLM admits; 0: any number")
	return cmd
}

func (c *cli) up(ctx context.Context, f *upFlags) error {
	if (f.exit || f.realLLM || f.input != "") && !f.demo {
		return usage("--exit, --input and --real-llm belong to --demo")
	}
	if f.conversations < 1 {
		return usage("--conversations %d: want 1 or more", f.conversations)
	}
	if f.workers < 1 {
		return usage("--workers %d: want 1 or more", f.workers)
	}
	if f.latency < 0 {
		return usage("--llm-latency %s: want 0 or more", f.latency)
	}
	if f.rpm < 0 || f.rpm > maxSimulatorRPM {
		return usage("--llm-rpm %d: want 1 to %d, or 0 for no limit", f.rpm, maxSimulatorRPM)
	}
	environ := c.environ
	if f.demo {
		// The demo is about agents; whoever sets a handler gets that one.
		environ = append([]string{"MILLRACE_HANDLER=agent", "MILLRACE_LOG_LEVEL=warn"}, environ...)
	}
	s, err := settings.Load(environ, settings.RoleUp)
	if err != nil {
		return err
	}
	if err := chooseLLM(&s, f); err != nil {
		return err
	}
	input, err := c.demoInput(f)
	if err != nil {
		return err
	}
	registry := ops.NewRegistry(buildInfo().Version)
	log, flush, err := c.logger(&s, registry)
	if err != nil {
		return err
	}
	defer flush()
	app.TuneMemory(log)
	stopTracing, err := app.StartTracing(ctx, "millrace-up", log)
	if err != nil {
		return err
	}
	defer stopTracing()
	process, err := app.NewProcess(s, log, registry)
	if err != nil {
		return err
	}
	cfg := app.UpConfig{
		Process:  process,
		Embedded: embedded.Config{Dir: embedded.DirConfig{Path: f.data}, Logger: log},
		Workers:  f.workers,
		Simulator: sim.Config{
			Seed: f.seed, Limits: sim.Limits{RequestsPerMinute: f.rpm},
			Latency: sim.Latency{Mean: f.latency, Jitter: f.latency / 4},
		},
		SimulatorRPM: f.rpm,
		Banner:       c.out,
	}
	if f.demo {
		cfg.Rules = demo.RulesYAML
		cfg.WhenUp = func(ctx context.Context, up *app.Up) error { return c.runDemo(ctx, f, input, up) }
	}
	defer c.sayStopping(ctx)()
	return app.RunUp(ctx, cfg)
}

// sayStopping says at once that a signal has arrived: what runs may take seconds
// to end in good order. It returns what ends the waiting for one.
func (c *cli) sayStopping(ctx context.Context) func() {
	said := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(said)
		_, _ = fmt.Fprintln(c.err, "\ninterrupted, stopping… (once more: at once)")
	})
	return func() {
		if !stop() {
			<-said
		}
	}
}

// chooseLLM leaves the providers that are set out of a demo, unless they were
// asked for, and refuses agents that would have no model to ask.
func chooseLLM(s *settings.Settings, f *upFlags) error {
	if f.demo && !f.realLLM {
		s.LLMProviders, s.LLMModel = nil, ""
	}
	if f.realLLM && len(s.LLMProviders) == 0 {
		return usage("--real-llm: no provider is set, such as with MILLRACE_LLM_OPENAI_API_KEY=… and MILLRACE_LLM_MODEL=…")
	}
	if s.Handler == "agent" && len(s.LLMProviders) > 0 && s.LLMModel == "" {
		return &settings.InvalidError{Problems: []settings.Problem{{
			Name: settings.Prefix + "LLM_MODEL", Reason: "missing: MILLRACE_HANDLER=agent with a provider of its own needs the name of a model",
		}}}
	}
	return nil
}

// demoInput reads the input before anything starts: a broken file should not
// cost a start.
func (c *cli) demoInput(f *upFlags) (*demo.Input, error) {
	switch {
	case !f.demo:
		return nil, nil //nolint:nilnil // no demo, no input
	case f.input != "":
		input, err := demo.OpenInput(f.input, c.in)
		var wrong *fs.PathError
		if errors.As(err, &wrong) && wrong.Op != "read" {
			return nil, usage("--input: %w", err)
		}
		return input, err
	}
	return demo.Generate(f.conversations, f.seed), nil
}

func (c *cli) runDemo(ctx context.Context, f *upFlags, input *demo.Input, up *app.Up) error {
	d, err := demo.New(demo.Config{
		Input: input, API: up.API, Kafka: up.Kafka, ResultsTopic: up.Settings.ResultsTopic(), Group: up.Settings.Group(),
		Postgres: up.Postgres, Provider: up.Provider, Simulator: up.Simulator,
		Redelivered: demo.ScrapeRedelivered(http.DefaultClient, up.API+"/metrics"), Out: c.out,
	})
	if err != nil {
		return err
	}
	report, err := d.Run(ctx)
	if err != nil {
		return err
	}
	if err := report.Print(c.out); err != nil {
		return err
	}
	switch {
	case f.exit && !report.OK():
		return fmt.Errorf("the demo failed: %s", strings.Join(report.Failures(), ", "))
	case f.exit:
		return app.ErrDone
	}
	_, err = fmt.Fprintf(c.out, "Serving on at %s until Ctrl-C.\n", up.API)
	return err
}
