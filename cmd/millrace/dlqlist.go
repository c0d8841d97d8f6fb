package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/statestore"
)

// maxListed bounds a page: each dead letter may bring a long detail along.
const maxListed = 1000

func dlqListCommand(c *cli) *cobra.Command {
	var (
		f      letterFlags
		after  int64
		limit  int
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "list",
		Short: "List dead letters",
		Long: `List the dead letters that wait, in the order they came, a page at a time, and
say how many more there are. Those that have been put back are left out, unless
--all asks for them.`,
		Example: `  millrace dlq list
  millrace dlq list --reason permanent_error --type chat.message --since 24h
  millrace dlq list --after 350 --limit 100
  millrace dlq list --json | jq -r '.dead_letters[] | [.id, .task_id, .detail] | @tsv'`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if limit < 1 || limit > maxListed {
				return usage("--limit %d: want 1 to %d", limit, maxListed)
			}
			if after < 0 {
				return usage("--after %d: want 0 or more", after)
			}
			filter, err := f.filter(time.Now())
			if err != nil {
				return err
			}
			filter.After = after
			return c.withDeadLetters(command.Context(), func(ctx context.Context, d *app.DeadLetters) error {
				letters, more, err := d.List(ctx, filter, limit)
				if err != nil {
					return err
				}
				return c.printLetters(letters, more, f.all, asJSON)
			})
		},
	}
	flags := command.Flags()
	f.add(flags)
	flags.BoolVar(&f.all, "all", false, "list also those that have been put back")
	flags.Int64Var(&after, "after", 0, "start behind the dead letter with this `id`")
	flags.IntVar(&limit, "limit", 50, "list so many at most")
	flags.BoolVar(&asJSON, "json", false, "print the page as JSON")
	return command
}

func (c *cli) printLetters(letters []statestore.DeadLetter, more int64, all, asJSON bool) error {
	if asJSON {
		page := struct {
			DeadLetters []statestore.DeadLetter `json:"dead_letters"`
			More        int64                   `json:"more"`
			NextAfter   int64                   `json:"next_after,omitempty"`
		}{DeadLetters: letters, More: more}
		if letters == nil {
			page.DeadLetters = []statestore.DeadLetter{}
		}
		if more > 0 {
			page.NextAfter = letters[len(letters)-1].ID
		}
		return json.NewEncoder(c.out).Encode(page)
	}
	if len(letters) == 0 {
		_, err := fmt.Fprintln(c.out, "no dead letters")
		return err
	}
	if _, err := fmt.Fprintln(c.out, letterTable(letters, all)); err != nil {
		return err
	}
	if more == 0 {
		return nil
	}
	_, err := fmt.Fprintf(c.out, "%d more; the next page: --after %d\n", more, letters[len(letters)-1].ID)
	return err
}

func letterTable(letters []statestore.DeadLetter, all bool) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	header := table.Row{"ID", "Came", "Reason", "Type", "Conversation", "Task", "Attempts", "Detail"}
	if all {
		header = append(header, "Put back")
	}
	t.AppendHeader(header)
	for _, l := range letters {
		row := table.Row{
			l.ID, localTime(l.At), l.Reason, snip(l.TaskType, 24), snip(l.ConversationID, 36), snip(taskName(l.TaskID, l.Redrive), 40),
			l.Attempts, snip(l.Detail, 60),
		}
		if all {
			back := ""
			if !l.RedrivenAt.IsZero() {
				back = localTime(l.RedrivenAt)
			}
			row = append(row, back)
		}
		t.AppendRow(row)
	}
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 1, Align: text.AlignRight}, {Number: 7, Align: text.AlignRight}})
	return t.Render()
}

// taskName returns a task's id, and which redrive of it is meant.
func taskName(id string, redrive int) string {
	if redrive == 0 {
		return id
	}
	return fmt.Sprintf("%s (redrive %d)", id, redrive)
}

// snip returns the start of a text on one line.
func snip(s string, most int) string {
	s = strings.Join(strings.Fields(plain(s)), " ")
	runes := []rune(s)
	if len(runes) <= most {
		return s
	}
	return string(runes[:most-1]) + "…"
}
