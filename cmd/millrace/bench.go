package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/internal/bench"
)

func init() { register(benchCommand) }

func benchCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a part on the services that run here",
		Long: `Measures a part as it is wired in the product, against real services on this
machine: load is sent to loopback addresses alone, in topics and in a database
of its own that are removed afterwards.

Prints a table, or with --json one object a line:
{"name","value","unit","bound","ratio","ok"}. Exit code 1 if a figure is not
within its bound.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("want one of engine, commit, outbox")
		},
	}
	cmd.AddCommand(benchEngineCommand(c), benchCommitCommand(c), benchOutboxCommand(c))
	return cmd
}

// benchFlags are those that all benchmarks have.
type benchFlags struct {
	json       bool
	brokers    []string
	cpuProfile string
	memProfile string
}

func (f *benchFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.json, "json", false, "print one JSON object a line, as each figure comes")
	flags.StringSliceVar(&f.brokers, "brokers", nil, "Kafka `brokers` (default: MILLRACE_KAFKA_BROKERS)")
	flags.StringVar(&f.cpuProfile, "cpuprofile", "", "write a CPU profile of the last measured run to this `file`")
	flags.StringVar(&f.memProfile, "memprofile", "", "write a profile of all allocations to this `file`")
}

func benchEngineCommand(c *cli) *cobra.Command {
	var (
		common benchFlags
		cfg    bench.EngineConfig
	)
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "Measure how fast and how fairly turns are started",
		Long: `Measures the worker's engine: keyed records through a handler that does nothing
(noop) and the client alone on the same records (poll), how busy a handler of
100 ms keeps the slots (work100ms), also with all conversations in one partition
(hot), how long a task waits for its turn (latency), the same for the first
priority behind a backlog of the last one (overtake), and what a waiting record
costs (memory).

Needs Kafka, Redis, and a PostgreSQL user who may create databases. Results are
off, as MILLRACE_RESULTS=off.`,
		Example: `  millrace bench engine
  millrace bench engine --only noop --records 200000 --json
  millrace bench engine --only noop --topics bench. --cpuprofile cpu.out`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return c.bench(cmd.Context(), &common, func(ctx context.Context, env bench.Env, report func(bench.Result) error) error {
				cfg.Env = env
				return bench.Engine(ctx, cfg, report)
			})
		},
	}
	common.register(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&cfg.Only, "only", nil, "run only these, of "+strings.Join(bench.EngineNames(), ","))
	flags.IntVar(&cfg.Records, "records", 2_000_000, "records that noop and poll read; half as many are the backlog of overtake")
	flags.IntVar(&cfg.Slots, "slots", 1000, "turns at once in noop, work100ms and hot")
	flags.DurationVar(&cfg.Window, "window", 10*time.Second, "how long a steady state is measured")
	flags.StringVar(&cfg.TopicPrefix, "topics", "", "keep the records of noop, poll and work100ms in topics under this `prefix`, and use what is there")
	flags.Float64Var(&cfg.PeerRate, "peer-rate", 0, "records a second of the Parallel Consumer on this machine; noop is held against 5 times that (default 75200)")
	return cmd
}

func benchCommitCommand(c *cli) *cobra.Command {
	var (
		common benchFlags
		cfg    bench.CommitConfig
	)
	cmd := &cobra.Command{
		Use:   "commit",
		Short: "Measure turns with state, from the task to the published result",
		Long: `Measures turns that leave something behind: whole turns of the handler echo, from
the task in its topic to the published result, with state, two messages, a
completion and an event (turns), how long it takes to open a conversation that
Redis holds (open), and how much longer a turn takes in a conversation of 10,000
messages than in one of 10 (history).

Needs Kafka, Redis, and a PostgreSQL user who may create databases.`,
		Example: `  millrace bench commit
  millrace bench commit --only turns --records 50000 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return c.bench(cmd.Context(), &common, func(ctx context.Context, env bench.Env, report func(bench.Result) error) error {
				cfg.Env = env
				return bench.Commit(ctx, cfg, report)
			})
		},
	}
	common.register(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&cfg.Only, "only", nil, "run only these, of "+strings.Join(bench.CommitNames(), ","))
	flags.IntVar(&cfg.Records, "records", 200_000, "tasks that turns runs")
	flags.IntVar(&cfg.Slots, "slots", 1000, "turns at once in turns")
	flags.IntVar(&cfg.Opens, "opens", 2000, "how often open and history open a conversation")
	return cmd
}

func benchOutboxCommand(c *cli) *cobra.Command {
	var (
		common benchFlags
		cfg    bench.OutboxConfig
	)
	cmd := &cobra.Command{
		Use:   "outbox",
		Short: "Measure how fast events get from PostgreSQL to Kafka",
		Long: `Measures the relay: how fast an outbox that is full is published, read by a
read_committed reader that checks that each event came once and in the order of
its key (rate), how long it takes from an event's commit until that reader has it
at 2,000 a second, with transactions and without (latency), and with --pin-xmin how
the rate holds while transactions keep deleted rows from being removed (pin).

Needs Kafka and a PostgreSQL user who may create databases.`,
		Example: `  millrace bench outbox
  millrace bench outbox --only pin --pin-xmin 10m --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return c.bench(cmd.Context(), &common, func(ctx context.Context, env bench.Env, report func(bench.Result) error) error {
				cfg.Env = env
				return bench.Outbox(ctx, cfg, report)
			})
		},
	}
	common.register(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&cfg.Only, "only", nil, "run only these, of "+strings.Join(bench.OutboxNames(), ","))
	flags.IntVar(&cfg.Records, "records", 400_000, "events that rate finds in the outbox")
	flags.DurationVar(&cfg.Window, "window", 20*time.Second, "how long latency is measured")
	flags.DurationVar(&cfg.PinXmin, "pin-xmin", 0, "how long pin runs; 0 leaves it out")
	flags.Float64Var(&cfg.PeerRate, "peer-rate", 0, "events a second of Watermill's forwarder on this machine; rate is held against 30 times that (default 1220)")
	return cmd
}

// bench runs benchmarks and prints what they report.
func (c *cli) bench(ctx context.Context, f *benchFlags, run func(context.Context, bench.Env, func(bench.Result) error) error) (err error) {
	env, done, err := c.benchEnv(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	var results []bench.Result
	err = run(ctx, env, func(r bench.Result) error {
		results = append(results, r)
		if f.json {
			return r.WriteJSON(c.out)
		}
		return nil
	})
	if !f.json && len(results) > 0 {
		err = errors.Join(err, bench.WriteTable(c.out, results))
	}
	if err != nil {
		return err
	}
	var missed []string
	for _, r := range results {
		if !r.OK {
			missed = append(missed, r.Name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("not within the bound: %s", strings.Join(missed, ", "))
	}
	return nil
}
