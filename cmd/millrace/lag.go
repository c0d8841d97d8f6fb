package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"millrace/internal/kafka"
	"millrace/internal/settings"
)

func init() { register(lagCommand) }

func lagCommand(c *cli) *cobra.Command {
	var (
		group              string
		asJSON, partitions bool
	)
	command := &cobra.Command{
		Use:   "lag",
		Short: "Say how many tasks wait in each priority",
		Long: `Say how far a pool's consumer group is behind, per topic or per partition.

The lag counts from the committed offset, which is below the oldest task that is
not done: tasks that finished out of order above it are counted as well. Before
the first commit it counts from the oldest record. What Kafka does not answer is
printed as unknown, which is not zero, and the exit code is then 1.

A pool that serves but some of the priorities has a lag in their topics alone:
call it with that pool's MILLRACE_POOL and MILLRACE_PRIORITIES.`,
		Example: `  millrace lag
  millrace lag --partitions
  MILLRACE_POOL=chat MILLRACE_PRIORITIES=high millrace lag --json | jq '[.partitions[].lag] | add'`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return c.withAdmin(command.Context(), func(ctx context.Context, s *settings.Settings, adm *kadm.Client) error {
				if group == "" {
					group = s.Group()
				}
				g, err := kafka.Lag(ctx, adm, group, s.TaskTopics()...)
				if err != nil {
					return err
				}
				return c.printLag(g, s.TaskTopics(), asJSON, partitions)
			})
		},
	}
	flags := command.Flags()
	flags.StringVar(&group, "group", "", "consumer `group` (default: that of MILLRACE_POOL)")
	flags.BoolVar(&partitions, "partitions", false, "list every partition")
	flags.BoolVar(&asJSON, "json", false, "print as JSON, with every partition; an unknown number is null")
	return command
}

func (c *cli) printLag(g kafka.GroupLag, topics []string, asJSON, partitions bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(c.out).Encode(g)
	} else {
		members := "unknown"
		if g.Members != nil {
			members = strconv.Itoa(*g.Members)
		}
		_, err = fmt.Fprintf(c.out, "group %s, state %s, members %s\n%s\n", g.Group, g.State, members, lagTable(g, topics, partitions))
	}
	if _, known := g.Total(""); !known {
		err = errors.Join(err, unknownLag(g))
	}
	return err
}

func lagTable(g kafka.GroupLag, topics []string, partitions bool) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	if partitions {
		t.AppendHeader(table.Row{"Topic", "Partition", "Committed", "End", "Lag"})
		for _, p := range g.Partitions {
			committed := number(p.Committed)
			if p.Committed == nil && p.Error == "" {
				committed = "none"
			}
			t.AppendRow(table.Row{p.Topic, p.Partition, committed, number(p.End), number(p.Lag)})
		}
	} else {
		t.AppendHeader(table.Row{"Topic", "Lag"})
		for _, topic := range topics {
			lag, known := g.Total(topic)
			if !known {
				t.AppendRow(table.Row{topic, "unknown"})
				continue
			}
			t.AppendRow(table.Row{topic, lag})
		}
	}
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 2, Align: text.AlignRight},
		{Number: 3, Align: text.AlignRight},
		{Number: 4, Align: text.AlignRight},
		{Number: 5, Align: text.AlignRight},
	})
	return t.Render()
}

func number(n *int64) string {
	if n == nil {
		return "unknown"
	}
	return strconv.FormatInt(*n, 10)
}

// unknownLag says why part of the lag is unknown: the first reason, and how
// many partitions it is about.
func unknownLag(g kafka.GroupLag) error {
	unknown, reason := 0, "there are no partitions"
	for _, p := range g.Partitions {
		if p.Lag != nil {
			continue
		}
		if unknown == 0 {
			reason = fmt.Sprintf("%s/%d: %s", p.Topic, p.Partition, p.Error)
			if p.Partition < 0 {
				reason = fmt.Sprintf("%s: %s", p.Topic, p.Error)
			}
		}
		unknown++
	}
	return fmt.Errorf("the lag is unknown in %d of %d partitions; the first: %s", unknown, len(g.Partitions), reason)
}
