package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/statestore"
)

func dlqRedriveCommand(c *cli) *cobra.Command {
	var (
		f                  letterFlags
		limit              int64
		noDeadline, dryRun bool
		asJSON             bool
	)
	command := &cobra.Command{
		Use:   "redrive [ID…]",
		Short: "Run the tasks of dead letters again",
		Long: `Put dead letters, chosen by their ids or by filters, back in the order they came,
and print what became of each. The record of a task goes into its topic again,
under the same id and as the next redrive of the task; an event goes back into
the outbox.

Doing it twice does not run a task twice: a redrive of a task is done once. When
it is interrupted, call it again. A record that can never be a task, and a task
whose deadline has passed, stay behind with the reason; the exit code is then 1.`,
		Example: `  millrace dlq redrive 17 18
  millrace dlq redrive --reason permanent_error --type chat.message --dry-run
  millrace dlq redrive --conversation c1
  millrace dlq redrive --everything --limit 10`,
		RunE: func(command *cobra.Command, args []string) error {
			filter, err := f.choice(args, time.Now())
			if err != nil {
				return err
			}
			if limit < 0 {
				return usage("--limit %d: want 1 or more, or 0 for no limit", limit)
			}
			return c.withDeadLetters(command.Context(), func(ctx context.Context, d *app.DeadLetters) error {
				n, err := c.chosen(ctx, d, &filter)
				if err != nil {
					return err
				}
				if limit > 0 && limit < n {
					n = limit
					if filter.Last, err = d.Nth(ctx, filter, n); err != nil {
						return err
					}
				}
				r := &redriveReport{c: c, total: n, dryRun: dryRun, asJSON: asJSON, last: time.Now()}
				if n > 0 {
					err = d.Redrive(ctx, app.RedriveConfig{Filter: filter, NoDeadline: noDeadline, DryRun: dryRun, Each: r.each})
				}
				return errors.Join(err, r.end())
			})
		},
	}
	flags := command.Flags()
	f.addChoice(flags)
	flags.Int64Var(&limit, "limit", 0, "put only so many back, the oldest first")
	flags.BoolVar(&noDeadline, "no-deadline", false, "take the deadlines of tasks away")
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would become of each")
	flags.BoolVar(&asJSON, "json", false, "print a line of JSON for each")
	return command
}

// redriveReport tells what becomes of dead letters.
type redriveReport struct {
	c              *cli
	total          int64
	dryRun, asJSON bool
	seen           int64
	sent           int64
	requeued       int64
	ended          int64
	refused        int64
	last           time.Time // when the last progress was told
}

// redriveLine is what became of a dead letter, as JSON.
type redriveLine struct {
	ID        int64  `json:"id"`
	TaskID    string `json:"task_id"`
	Outcome   string `json:"outcome"`
	Redrive   int    `json:"redrive,omitempty"`
	Topic     string `json:"topic,omitempty"`
	Partition *int32 `json:"partition,omitempty"`
	Offset    *int64 `json:"offset,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

func (r *redriveReport) each(l app.Redriven) error {
	r.seen++
	would := ""
	if r.dryRun {
		would = "would be "
	}
	line := redriveLine{ID: l.ID, TaskID: l.TaskID}
	var says string
	switch l.Resort {
	case statestore.Sent:
		r.sent++
		line.Outcome, line.Redrive, line.Topic = "redriven", l.Redrive+1, l.Topic
		says = fmt.Sprintf("%sredriven as %d to %s", would, l.Redrive+1, l.Topic)
		if !r.dryRun {
			line.Partition, line.Offset = &l.Partition, &l.Offset
			says += fmt.Sprintf(", partition %d, offset %d", l.Partition, l.Offset)
		}
	case statestore.Requeued:
		r.requeued++
		line.Outcome, says = "requeued", "the event "+would+"put back into the outbox"
	case statestore.Ended:
		r.ended++
		line.Outcome, line.Redrive = "ended", l.Redrive+1
		says = fmt.Sprintf("was put back before, and redrive %d has ended", l.Redrive+1)
	default:
		r.refused++
		line.Outcome, line.Reason = "refused", l.Err.Error()
		says = "refused: " + l.Err.Error()
	}
	r.progress()
	if r.asJSON {
		return json.NewEncoder(r.c.out).Encode(line)
	}
	_, err := fmt.Fprintf(r.c.out, "%d  %s  %s\n", l.ID, plain(l.TaskID), plain(says))
	return err
}

// progress tells now and then how far it is, unless the lines themselves are seen.
func (r *redriveReport) progress() {
	if now := time.Now(); now.Sub(r.last) > 2*time.Second && !isTerminal(r.c.out) {
		r.last = now
		r.c.complain("%d of %s", r.seen, plural(r.total))
	}
}

func (r *redriveReport) end() error {
	if !r.asJSON {
		would := ""
		if r.dryRun {
			would = "would be "
		}
		says := []string{fmt.Sprintf("%d of %s %sredriven", r.sent, plural(r.total), would)}
		if r.requeued > 0 {
			says = append(says, fmt.Sprintf("%d put back into the outbox", r.requeued))
		}
		if r.ended > 0 {
			says = append(says, fmt.Sprintf("%d had been before", r.ended))
		}
		if r.refused > 0 {
			says = append(says, fmt.Sprintf("%d refused", r.refused))
		}
		if _, err := fmt.Fprintln(r.c.out, strings.Join(says, ", ")); err != nil {
			return err
		}
	}
	if r.refused > 0 {
		return fmt.Errorf("%s cannot be redriven", plural(r.refused))
	}
	return nil
}
