package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/internal/app"
)

func dlqDropCommand(c *cli) *cobra.Command {
	var (
		f   letterFlags
		yes bool
	)
	command := &cobra.Command{
		Use:   "drop [ID…]",
		Short: "Delete dead letters for good",
		Long: `Delete dead letters, chosen by their ids or by filters, for good, and say how many
there were. It asks first; --yes answers for scripts. That a task has failed
stays known.`,
		Example: `  millrace dlq drop 17 18
  millrace dlq drop --reason invalid_json --until 720h --yes
  millrace dlq drop --everything --all --yes   # those that have been put back, too`,
		RunE: func(command *cobra.Command, args []string) error {
			filter, err := f.choice(args, time.Now())
			if err != nil {
				return err
			}
			return c.withDeadLetters(command.Context(), func(ctx context.Context, d *app.DeadLetters) error {
				n, err := c.chosen(ctx, d, &filter)
				if err != nil {
					return err
				}
				if n > 0 && !yes {
					if err := c.confirm(ctx, "drop "+plural(n)); err != nil {
						return err
					}
				}
				if n > 0 {
					if n, err = d.Drop(ctx, filter); err != nil {
						return err
					}
				}
				_, err = fmt.Fprintf(c.out, "dropped %s\n", plural(n))
				return err
			})
		},
	}
	f.addChoice(command.Flags())
	command.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return command
}

var errDeclined = errors.New("nothing was done")

// confirm asks whoever sits at the terminal.
func (c *cli) confirm(ctx context.Context, what string) error {
	if !isTerminal(c.in) {
		return usage("%s: nobody is there to ask; --yes goes without", what)
	}
	return ask(ctx, c.in, c.err, what)
}

// ask returns nil for a yes. Reading cannot be interrupted, so that it goes on when
// the context ends, until the process does.
func ask(ctx context.Context, in io.Reader, out io.Writer, what string) error {
	if _, err := fmt.Fprintf(out, "%s? [y/N] ", what); err != nil {
		return err
	}
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(in).ReadString('\n') // what was read until an error is the answer
		answer <- line
	}()
	select {
	case line := <-answer:
		if line = strings.ToLower(strings.TrimSpace(line)); line == "y" || line == "yes" {
			return nil
		}
	case <-ctx.Done():
	}
	return errDeclined
}
