package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"millrace"
	"millrace/internal/app"
	"millrace/internal/settings"
)

func init() { register(conversationsCommand) }

func conversationsCommand(c *cli) *cobra.Command {
	command := &cobra.Command{
		Use:     "conversations",
		Short:   "Erase conversations",
		Long:    `Look after conversations, in PostgreSQL and Redis.`,
		Example: `  millrace conversations erase ticket-1001`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("want erase")
		},
	}
	command.AddCommand(conversationsEraseCommand(c))
	return command
}

func conversationsEraseCommand(c *cli) *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use:   "erase ID…",
		Short: "Erase conversations for good",
		Long: `Erase conversations for good: history, state, results and errors of their tasks,
steps, dead letters, tasks that are held back until their time, and the copies in
Redis and in workers. It asks first; --yes answers for scripts. It ends when nothing of them is left in PostgreSQL and Redis;
if it is interrupted, workers and relays delete the rest.

What stays: that there was a conversation of this id, and that its tasks have
ended. Tasks that wait run later, on an empty conversation: cancel them first if
they are not to. What Kafka has of a conversation (tasks, results, events, copies of
dead letters) goes when the retention of its topics is over.`,
		Example: `  millrace conversations erase ticket-1001
  millrace conversations erase ticket-1001 ticket-1002 --yes`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			for _, id := range args {
				if err := millrace.ValidateConversation(id); err != nil || id == "" {
					return usage("%q: want the id of a conversation", id)
				}
			}
			s, err := c.settings(settings.RoleTool)
			if err != nil {
				return err
			}
			ctx := command.Context()
			if !yes {
				if err := c.confirm(ctx, fmt.Sprintf("erase %d conversations", len(args))); err != nil {
					return err
				}
			}
			quiet := s
			if quiet.LogLevel == "info" {
				quiet.LogLevel = "warn"
			}
			log, flush, err := c.logger(&quiet, nil)
			if err != nil {
				return err
			}
			defer flush()
			conversations, err := app.OpenConversations(ctx, &s, log)
			if err != nil {
				return err
			}
			defer conversations.Close()
			return c.erase(ctx, conversations, args)
		},
	}
	command.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return command
}

// erase erases one conversation after another. One that is not there keeps no other
// from being erased.
func (c *cli) erase(ctx context.Context, conversations *app.Conversations, ids []string) error {
	var missing error
	for _, id := range ids {
		_, err := conversations.Erase(ctx, id)
		switch {
		case errors.Is(err, millrace.ErrNotFound):
			missing = errors.Join(missing, fmt.Errorf("conversation %q is not known", id))
			continue
		case err != nil:
			return err
		}
		if _, err := fmt.Fprintf(c.out, "erased %s\n", id); err != nil {
			return err
		}
	}
	return missing
}
