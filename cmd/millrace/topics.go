package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/kafka"
	"millrace/internal/settings"
)

func init() { register(topicsCommand) }

// adminTimeout bounds what a command asks of Kafka, once it answers at all.
const adminTimeout = time.Minute

func topicsCommand(c *cli) *cobra.Command {
	var dryRun bool
	create := func(command *cobra.Command, _ []string) error {
		return c.withAdmin(command.Context(), func(ctx context.Context, s *settings.Settings, adm *kadm.Client) error {
			return c.createTopics(ctx, s, adm, dryRun)
		})
	}
	command := &cobra.Command{
		Use:   "topics",
		Short: "Create the topics that are missing",
		Long: `Create the topics that are missing, and say which. Topics that exist are never
changed; when one of them is not as it must be, nothing is created and the
message says what to do.

All priority topics get MILLRACE_PARTITIONS partitions. The number is the most
workers that can share the work, and is fixed from then on.`,
		Example: `  millrace topics --dry-run
  MILLRACE_PARTITIONS=120 millrace topics
  millrace topics check`,
		Args: cobra.NoArgs,
		RunE: create,
	}
	command.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be created, after asking Kafka whether it would")
	command.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the topics; exit code 1 if anything is",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return c.withAdmin(command.Context(), func(ctx context.Context, s *settings.Settings, adm *kadm.Client) error {
				if err := kafka.CheckTopics(ctx, adm, kafka.Topics(s)); err != nil {
					return err
				}
				_, err := fmt.Fprintln(c.out, "all topics are as they must be")
				return err
			})
		},
	})
	return command
}

func (c *cli) createTopics(ctx context.Context, s *settings.Settings, adm *kadm.Client, dryRun bool) error {
	changes, err := kafka.EnsureTopics(ctx, adm, kafka.Topics(s), dryRun)
	for _, change := range changes {
		what := "exists"
		switch {
		case change.What != "" && dryRun:
			what = "would be created: " + change.What
		case change.What != "":
			what = "created: " + change.What
		}
		if _, printErr := fmt.Fprintf(c.out, "%-*s  %s\n", len(s.TopicPrefix)+len("relay.markers"), change.Topic, what); printErr != nil {
			return errors.Join(err, printErr)
		}
	}
	return err
}

// withAdmin calls do with an admin client of the Kafka in the settings.
func (c *cli) withAdmin(ctx context.Context, do func(context.Context, *settings.Settings, *kadm.Client) error) error {
	s, err := c.settings(settings.RoleTool)
	if err != nil {
		return err
	}
	cl, flush, err := c.dialKafka(ctx, &s, "admin")
	if err != nil {
		return err
	}
	defer flush()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	return do(ctx, &s, kadm.NewClient(cl))
}

// dialKafka returns a client for a command, and what flushes its log. A command
// says itself what went wrong in the end, so that the client's warnings on the
// way are left out, unless a level below the default asks for more.
func (c *cli) dialKafka(ctx context.Context, s *settings.Settings, part string, more ...kgo.Opt) (*kgo.Client, func(), error) {
	quiet := *s
	if quiet.LogLevel == "info" {
		quiet.LogLevel = "error"
	}
	log, flush, err := c.logger(&quiet, nil)
	if err != nil {
		return nil, nil, err
	}
	cl, err := kafka.Dial(ctx, s, part, log, more...)
	if err != nil {
		flush()
		return nil, nil, err
	}
	return cl, flush, nil
}
