package main

import (
	"context"

	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/internal/ops"
	"millrace/internal/settings"
)

func init() {
	register(newIngest)
	register(newWorker)
	register(newRelay)
}

func newIngest(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "ingest",
		Short: "Take tasks in over HTTP",
		Long: `Takes tasks in over HTTP, gives each its priority and produces it to Kafka.
A task is accepted (202) once all in-sync replicas have acknowledged it.

Needs Kafka and its topics (millrace topics). PostgreSQL and Redis answer
questions about tasks, and PostgreSQL holds those with a run_at back; without
them all other tasks are still accepted.

The address also serves /docs, /openapi.json, /livez, /readyz and /metrics.`,
		Example: `  MILLRACE_KAFKA_BROKERS=kafka:9092 millrace ingest
  MILLRACE_HTTP_ADDR=0.0.0.0:8080 MILLRACE_AUTH=trust-network millrace ingest`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.serve(cmd.Context(), settings.RoleIngest, app.RunIngest)
		},
	}
}

func newWorker(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "worker",
		Short: "Run turns",
		Long: `Runs turns as a member of its pool's consumer group. Start as many as there are
partitions; they share the work. On SIGTERM a worker finishes its running turns
(MILLRACE_DRAIN_TIMEOUT), commits and leaves; kill -9 costs nothing but the
turns' time.

Needs Kafka, Redis, and PostgreSQL with its schema (millrace migrate).`,
		Example: `  MILLRACE_HANDLER=http MILLRACE_HANDLER_URL=http://127.0.0.1:9000/turn millrace worker
  MILLRACE_HANDLER=agent MILLRACE_LLM_MODEL=openai/gpt-5 \
    MILLRACE_LLM_OPENAI_API_KEY_FILE=/run/secrets/openai millrace worker`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.serve(cmd.Context(), settings.RoleWorker, func(ctx context.Context, p *app.Process) error {
				return app.RunWorker(ctx, p, nil)
			})
		},
	}
}

func newRelay(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "relay",
		Short: "Publish outbox events to Kafka",
		Long: `Publishes the events that turns have committed, and releases tasks whose run_at
has come. Workers do this themselves unless MILLRACE_RELAY=off; relays of both
kinds share the shards among them, and one of them releases.

Needs PostgreSQL with its schema, and Kafka.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.serve(cmd.Context(), settings.RoleRelay, app.RunRelay)
		},
	}
}

// serve runs a long-lived process.
func (c *cli) serve(ctx context.Context, role settings.Role, run func(context.Context, *app.Process) error) error {
	c.serves = true
	s, err := c.settings(role)
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
	stopTracing, err := app.StartTracing(ctx, "millrace-"+string(role), log)
	if err != nil {
		return err
	}
	defer stopTracing()
	p, err := app.NewProcess(s, log, registry)
	if err != nil {
		return err
	}
	return run(ctx, p)
}
