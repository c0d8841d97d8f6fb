package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/internal/app"
	"millrace/internal/settings"
	"millrace/statestore"
)

func init() { register(dlqCommand) }

func dlqCommand(c *cli) *cobra.Command {
	command := &cobra.Command{
		Use:   "dlq",
		Short: "Look at dead letters, put them back, drop them",
		Long: `Dead letters are tasks given up on, kept in PostgreSQL with the record as it was
read and the reason, and events that Kafka refused. Look at them, and once the
cause is gone, put them back.

Reasons: permanent_error (the handler said so), attempts_exhausted,
deadline_exceeded, effects_refused (PostgreSQL refuses what the turn wrote),
killed_workers (three workers died that ran it, the last while it ran alone),
null_value, invalid_key, invalid_header, invalid_json (the record can be no task),
event_unpublishable (an event that Kafka refused).`,
		Example: `  millrace dlq list --reason permanent_error --since 24h
  millrace dlq show 17
  millrace dlq redrive --reason permanent_error --dry-run
  millrace dlq drop 17 18`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage("want one of list, show, redrive, drop")
		},
	}
	command.AddCommand(dlqListCommand(c), dlqShowCommand(c), dlqRedriveCommand(c), dlqDropCommand(c))
	return command
}

// withDeadLetters calls do with the dead letters of the installation in the
// settings.
func (c *cli) withDeadLetters(ctx context.Context, do func(context.Context, *app.DeadLetters) error) error {
	s, err := c.settings(settings.RoleTool)
	if err != nil {
		return err
	}
	// A command says itself what went wrong in the end. What it waits for, it says
	// at once.
	quiet := s
	if quiet.LogLevel == "info" {
		quiet.LogLevel = "warn"
	}
	if isTerminal(c.err) {
		quiet.LogFormat = "console"
	}
	log, flush, err := c.logger(&quiet, nil)
	if err != nil {
		return err
	}
	defer flush()
	d, err := app.OpenDeadLetters(ctx, &s, log)
	if err != nil {
		return err
	}
	defer d.Close()
	return do(ctx, d)
}

// letterFlags select dead letters.
type letterFlags struct {
	reason, kind, conversation, tenant, topic, task string
	since, until                                    string
	all, everything                                 bool
}

func (f *letterFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.reason, "reason", "", "only those with this reason")
	flags.StringVar(&f.kind, "type", "", "only tasks of this type")
	flags.StringVar(&f.conversation, "conversation", "", "only those of this conversation")
	flags.StringVar(&f.tenant, "tenant", "", "only those of this tenant")
	flags.StringVar(&f.topic, "topic", "", "only those that lay in this topic")
	flags.StringVar(&f.task, "task", "", "only those of the task with this id")
	flags.StringVar(&f.since, "since", "", "only those that came at this `time` or later: RFC 3339, or so long ago, as 90m")
	flags.StringVar(&f.until, "until", "", "only those that came before this `time`")
}

// addChoice adds the flags of the commands that do something to dead letters.
func (f *letterFlags) addChoice(flags *pflag.FlagSet) {
	f.add(flags)
	flags.BoolVar(&f.everything, "everything", false, "choose every dead letter, instead of ids or filters")
	flags.BoolVar(&f.all, "all", false, "choose also among those that have been put back")
}

// filter returns what the flags select, as seen at the given time.
func (f *letterFlags) filter(now time.Time) (statestore.DeadLetterFilter, error) {
	out := statestore.DeadLetterFilter{
		Reason: f.reason, TaskType: f.kind, Conversation: f.conversation, Tenant: f.tenant, Topic: f.topic, TaskID: f.task,
		Redriven: f.all,
	}
	var err error
	if out.Since, err = parseMoment("since", f.since, now); err != nil {
		return out, err
	}
	out.Until, err = parseMoment("until", f.until, now)
	return out, err
}

// choice returns what ids and flags choose. Nothing is not everything.
func (f *letterFlags) choice(args []string, now time.Time) (statestore.DeadLetterFilter, error) {
	out, err := f.filter(now)
	if err != nil {
		return out, err
	}
	bare := letterFlags{all: f.all, everything: f.everything}
	filtered := *f != bare
	ways := 0
	for _, way := range []bool{len(args) > 0, filtered, f.everything} {
		if way {
			ways++
		}
	}
	if ways != 1 {
		return out, usage("want either ids, or filters, or --everything")
	}
	for _, arg := range args {
		id, err := parseLetterID(arg)
		if err != nil {
			return out, err
		}
		out.IDs = append(out.IDs, id)
	}
	slices.Sort(out.IDs)
	out.IDs = slices.Compact(out.IDs)
	return out, nil
}

func parseLetterID(arg string) (int64, error) {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id < 1 {
		return 0, usage("dead letter %q: want the number that millrace dlq list shows", arg)
	}
	return id, nil
}

// parseMoment reads a time, or a duration as the time so long ago.
func parseMoment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usage("--%s %q: want a time as 2026-01-02T15:04:05Z, or how long ago, as 90m", flag, text)
	}
	return at, nil
}

// chosen counts what a filter selects and pins it: what comes later is no part of
// it. Ids that do not exist are an error, those that were put back are mentioned.
func (c *cli) chosen(ctx context.Context, d *app.DeadLetters, f *statestore.DeadLetterFilter) (int64, error) {
	if len(f.IDs) > 0 {
		if err := c.checkIDs(ctx, d, *f); err != nil {
			return 0, err
		}
	}
	n, last, err := d.Count(ctx, *f)
	f.Last = last
	return n, err
}

func (c *cli) checkIDs(ctx context.Context, d *app.DeadLetters, f statestore.DeadLetterFilter) error {
	there, _, err := d.List(ctx, statestore.DeadLetterFilter{IDs: f.IDs, Redriven: true}, len(f.IDs))
	if err != nil {
		return err
	}
	known := make(map[int64]bool, len(there))
	for _, l := range there {
		known[l.ID] = true
		if !l.RedrivenAt.IsZero() && !f.Redriven {
			c.complain("dead letter %d has been put back already, at %s; with --all it is chosen all the same", l.ID, localTime(l.RedrivenAt))
		}
	}
	var unknown []string
	for _, id := range f.IDs {
		if !known[id] {
			unknown = append(unknown, strconv.FormatInt(id, 10))
		}
	}
	if len(unknown) > 0 {
		return fmt.Errorf("no dead letter %s", strings.Join(unknown, ", "))
	}
	return nil
}

func localTime(at time.Time) string { return at.Local().Format(time.DateTime) }

// plural returns "1 dead letter" or "2 dead letters".
func plural(n int64) string {
	if n == 1 {
		return "1 dead letter"
	}
	return strconv.FormatInt(n, 10) + " dead letters"
}
