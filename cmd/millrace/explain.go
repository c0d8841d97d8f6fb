package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace"
	"millrace/consumer"
	"millrace/internal/app"
	"millrace/internal/settings"
)

func init() { register(explainCommand) }

func explainCommand(c *cli) *cobra.Command {
	var (
		asJSON     bool
		maxRecords int64
	)
	command := &cobra.Command{
		Use:   "explain TASK",
		Short: "Say where a task is and what it waits for",
		Long: `Say where a task is and what it waits for. It asks PostgreSQL for its completion,
and whether it is held back until its time; then all live workers, on the addresses that they have left in Redis; and if none
of them has it in memory, it looks for its record in what is not committed of the
priority topics, and says which worker owns that partition.

It changes nothing. A service that does not answer is named, and the others are
asked all the same. Exit code 1 if nobody who was asked knows the task.`,
		Example: `  millrace explain 0199f5c2-7c1e-7d5a-9a53-5c1b8f1f0c11
  millrace explain --json ticket-1002.message-1 | jq .explanation.state`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			if err := millrace.ValidateConversation(args[0]); err != nil || args[0] == "" || len(args[0]) > millrace.MaxIDBytes {
				return usage("task %q: want the id that the API gave, at most %d bytes of UTF-8 without control characters", args[0], millrace.MaxIDBytes)
			}
			if maxRecords < 0 {
				return usage("--max-records %d: want 0 or more", maxRecords)
			}
			return c.explain(command.Context(), args[0], maxRecords, asJSON)
		},
	}
	flags := command.Flags()
	flags.BoolVar(&asJSON, "json", false, "print as JSON")
	flags.Int64Var(&maxRecords, "max-records", 5_000_000, "search at most so many uncommitted records for it; 0 searches none")
	return command
}

func (c *cli) explain(ctx context.Context, id string, maxRecords int64, asJSON bool) error {
	s, err := c.settings(settings.RoleTool)
	if err != nil {
		return err
	}
	quiet := s
	if quiet.LogLevel == "info" {
		quiet.LogLevel = "error"
	}
	log, flush, err := c.logger(&quiet, nil)
	if err != nil {
		return err
	}
	defer flush()
	found, err := app.Explain(ctx, app.ExplainConfig{
		Settings: &s, Log: log, TaskID: id, MaxRecords: maxRecords,
		Progress: func(searched, of int64) { c.complain("searched %d of %d uncommitted records", searched, of) },
	})
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(found)
	} else {
		_, err = c.out.Write(describeWhereabouts(&found, time.Now()))
	}
	switch {
	case err != nil || found.Found:
	case len(found.Problems)+len(found.Silent) > 0:
		err = fmt.Errorf("task %s was not found, but not everybody could be asked", id)
	default:
		err = fmt.Errorf("nobody knows task %s", id)
	}
	return err
}

// describeWhereabouts returns what is known of a task as text for people.
func describeWhereabouts(w *app.TaskWhereabouts, now time.Time) []byte {
	var b bytes.Buffer
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, plain(fmt.Sprintf(format, args...)))
	}
	line("task", "%s", w.TaskID)
	if w.Result != nil {
		describeCompletion(line, w)
	}
	switch {
	case w.Explanation != nil:
		describeExplanation(line, w.Explanation, now)
	case !w.HeldUntil.IsZero():
		describeHeld(line, w.HeldUntil, now)
	case w.Record != nil:
		line("state", "queued: no worker has read it")
	case !w.Found:
		line("state", "unknown")
	}
	if w.Worker != nil {
		line("worker", "%s", describeWorker(w.Worker))
	}
	if r := w.Record; r != nil {
		line("record", "%s, partition %d, offset %d: %d records before it are not committed", r.Topic, r.Partition, r.Offset, r.Before)
		if w.Worker == nil {
			describeOwners(line, r.Owners)
		}
	}
	if !w.Found {
		describeUnknown(line, w)
	}
	for _, silent := range w.Silent {
		line("no answer", "%s: %s", describeWorker(&silent.WorkerInfo), silent.Error)
	}
	for _, problem := range w.Problems {
		line("not asked", "%s", problem)
	}
	return b.Bytes()
}

type lineFunc func(name, format string, args ...any)

func describeCompletion(line lineFunc, w *app.TaskWhereabouts) {
	r := w.Result
	line("completion", "%s at %s, attempts %d", r.Status, localTime(r.FinishedAt), r.Attempts)
	if r.ConversationID != "" {
		line("conversation", "%s", r.ConversationID)
	}
	if r.Error != "" {
		line("error", "%s", r.Error)
	}
	switch d := w.DeadLetter; {
	case d == nil:
	case d.RedrivenAs > 0:
		line("dead letter", "%d, put back at %s as redrive %d, which has not completed yet", d.ID, localTime(d.RedrivenAt), d.RedrivenAs)
	default:
		line("dead letter", "%d: %s (millrace dlq show %d)", d.ID, d.Reason, d.ID)
	}
}

func describeHeld(line lineFunc, until, now time.Time) {
	if wait := until.Sub(now); wait > 0 {
		line("state", "held back until %s, in %s", localTime(until), wait.Round(time.Second))
		return
	}
	line("state", "due since %s: held back until a worker with a relay, or a millrace relay, releases it", localTime(until))
}

func describeWorker(w *consumer.WorkerInfo) string {
	name := w.Incarnation
	if w.Name != "" {
		name = w.Name
	}
	return fmt.Sprintf("%s of pool %s on %s, %s", name, w.Pool, w.Host, w.Addr)
}

func describeOwners(line lineFunc, owners []consumer.WorkerInfo) {
	if len(owners) == 0 {
		line("owner", "no live worker owns the partition: is one running that serves its priority, or is the group moving partitions?")
	}
	for i := range owners {
		line("owner", "%s", describeWorker(&owners[i]))
	}
}

func describeExplanation(line lineFunc, x *consumer.Explanation, now time.Time) {
	in := func(at time.Time) string {
		if at.Before(now) {
			return fmt.Sprintf("%s ago", now.Sub(at).Round(time.Millisecond))
		}
		return fmt.Sprintf("in %s", at.Sub(now).Round(time.Millisecond))
	}
	line("state", "%s", describeState(x, in))
	if x.Draining {
		line("draining", "this worker has been told to stop and starts no turns; the task runs elsewhere")
	}
	if x.ConversationID != "" {
		line("conversation", "%s", x.ConversationID)
	}
	if x.Priority != "" {
		line("priority", "%s", x.Priority)
	}
	if x.Redrive > 0 {
		line("redrive", "%d", x.Redrive)
	}
	if x.State != consumer.Running && x.Attempt > 0 {
		line("attempts", "%d of %d have failed", x.Attempt, x.MaxAttempts)
	}
	if x.Outages > 0 {
		line("outages", "%d tries in a row found a dependency out; they count as no attempts", x.Outages)
	}
	if x.LastError != "" {
		line("last error", "%s", x.LastError)
	}
	if x.Deaths > 0 {
		line("deaths", "%d workers have died while it ran", x.Deaths)
	}
	if x.RunsAlone != "" {
		line("runs alone", "%s: workers have died while it ran, so nothing else starts until it ends", x.RunsAlone)
	}
	if x.Slots > 0 {
		text := fmt.Sprintf("%d of %d busy", x.BusySlots, x.Slots)
		if x.ReservedSlots > 0 {
			text += fmt.Sprintf(", %d free ones are kept for other priorities", x.ReservedSlots)
		}
		line("slots", "%s", text)
	}
	if x.Topic != "" {
		line("lies in", "%s, partition %d, offset %d", x.Topic, x.Partition, x.Offset)
	}
}

// describeState says what a task waits for. In says when something was or will be.
func describeState(x *consumer.Explanation, in func(time.Time) string) string {
	switch x.State {
	case consumer.Running:
		if x.StartedAt.IsZero() {
			return "running: outside its handler, which has still to start or has returned and commits"
		}
		return fmt.Sprintf("running: attempt %d of %d, since %s (%s), its time is up %s", x.Attempt, x.MaxAttempts, localTime(x.StartedAt), in(x.StartedAt), in(x.TimesOutAt))
	case consumer.WaitingForSlot:
		return fmt.Sprintf("waits for a free slot: %d conversations of its priority come first", x.ConversationsBefore)
	case consumer.WaitingForConversation:
		text := fmt.Sprintf("waits for its conversation: %d tasks come first", x.TasksBefore)
		switch {
		case x.RunningTask != "":
			text += ", of which " + x.RunningTask + " runs"
		case !x.RetryAt.IsZero():
			text += ", the first is tried again " + in(x.RetryAt)
		case x.WaitsFor != "":
			text += ", the first waits for " + x.WaitsFor
		}
		return text
	case consumer.WaitingForRetry:
		return fmt.Sprintf("waits for its next try %s, at %s", in(x.RetryAt), localTime(x.RetryAt))
	case consumer.WaitingForOwner:
		return fmt.Sprintf("waits, since %s, for a turn of its conversation at an earlier owner of the partition: worker %s", in(x.WaitsSince), x.WaitsFor)
	case consumer.WaitingForPool:
		if x.WaitsFor == "" {
			return "waits for the lease of its conversation: Redis does not answer"
		}
		pool, rest, _ := strings.Cut(x.WaitsFor, "/")
		incarnation, turn, running := strings.Cut(rest, "/")
		if !running {
			return fmt.Sprintf("waits for the lease of its conversation: pool %s is next (worker %s)", pool, incarnation)
		}
		return fmt.Sprintf("waits for the lease of its conversation: pool %s runs a turn of it (worker %s, turn %s)", pool, incarnation, turn)
	case consumer.WaitingToRunAlone:
		return "waits until nothing else runs in its worker: workers have died while it ran, and the next one must not take others along"
	case consumer.LookingUp:
		return "read; its worker asks PostgreSQL whether it is complete already"
	case consumer.Unread:
		text := "queued: its worker has not read that far yet"
		if x.ReadTo >= 0 {
			text += fmt.Sprintf(" (read up to offset %d, done below %d)", x.ReadTo, x.CommittedTo)
		}
		switch x.PausedBy {
		case "bytes":
			text += ": reading is paused, too many bytes of this priority wait in its memory"
		case "offsets":
			text += ": reading is paused, it is too far ahead of the oldest task of the partition that is not done"
		}
		return text
	case consumer.Done:
		return "done: its worker is done with the record, and commits its offset in a moment"
	case consumer.Absent:
		return "not known to its worker"
	}
	return string(x.State)
}

func describeUnknown(line lineFunc, w *app.TaskWhereabouts) {
	searched := "the log was not searched"
	if s := w.Search; s != nil {
		searched = fmt.Sprintf("%d of %d uncommitted records were searched", s.Searched, s.Uncommitted)
	}
	line("asked", "%d live workers, %s", w.Workers, searched)
	if s := w.Search; s != nil && s.Searched < s.Uncommitted {
		line("may be", "further back in the log: search more with --max-records")
	}
	if len(w.Problems) > 0 {
		line("may be", "known to a service that could not be asked")
	}
	if len(w.Silent) > 0 {
		line("may be", "in the memory of a worker that does not answer")
	}
	if w.Accepted {
		line("may be", "under way: word was left in Redis that it was accepted")
	}
	line("may be", "never accepted, or known under another id; done without effects under MILLRACE_RESULTS=off, which leaves nothing;")
	line("", "or deleted by Kafka, which keeps what nobody takes for 7 days")
}
