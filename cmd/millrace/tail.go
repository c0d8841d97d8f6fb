package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/internal/settings"
)

func init() { register(tailCommand) }

type tailFlags struct {
	fromStart    bool
	conversation string
	count        int
	asJSON       bool
}

func tailCommand(c *cli) *cobra.Command {
	var f tailFlags
	command := &cobra.Command{
		Use:   "tail",
		Short: "Print the results of tasks as they come in",
		Long: `Print a line for every result event: time, what happened, conversation, task id,
attempts, how long it took, and the result or the error. It starts
with results that come in from now on, and goes on until it is stopped.

It reads committed events only. Those of one conversation come in order.`,
		Example: `  millrace tail
  millrace tail --from-start --conversation c1
  millrace tail --json | jq -c 'select(.status != "completed")'`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if f.count < 0 {
				return usage("--count %d: want 1 or more, or 0 for no end", f.count)
			}
			return c.tail(command.Context(), f)
		},
	}
	flags := command.Flags()
	flags.BoolVar(&f.fromStart, "from-start", false, "start with the oldest result there is")
	flags.StringVar(&f.conversation, "conversation", "", "only the results of this conversation")
	flags.IntVar(&f.count, "count", 0, "stop after so many results")
	flags.BoolVar(&f.asJSON, "json", false, "print each result as JSON, as the event has it")
	return command
}

func (c *cli) tail(ctx context.Context, f tailFlags) error {
	s, err := c.settings(settings.RoleTool)
	if err != nil {
		return err
	}
	cl, flush, err := c.dialKafka(ctx, &s, "tail",
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer flush()
	defer cl.Close()
	start, err := startOffsets(ctx, kadm.NewClient(cl), s.ResultsTopic(), f.fromStart)
	if err != nil {
		return err
	}
	cl.AddConsumePartitions(start)
	for printed := 0; ; {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read results: %w", err)
		}
		for record := range fetches.RecordsAll() {
			if f.conversation != "" && string(record.Key) != f.conversation {
				continue
			}
			text := describeResult(record)
			if f.asJSON {
				text = compact(record.Value)
			}
			if _, err := fmt.Fprintf(c.out, "%s\n", text); err != nil {
				return err
			}
			if printed++; printed == f.count {
				return nil
			}
		}
	}
}

// startOffsets returns where to start in each partition: fixed now, so that
// nothing that happens from here on is missed.
func startOffsets(ctx context.Context, adm *kadm.Client, topic string, fromStart bool) (map[string]map[int32]kgo.Offset, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	list := adm.ListCommittedOffsets
	if fromStart {
		list = adm.ListStartOffsets
	}
	offsets, err := list(ctx, topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the ends of topic %s (it is made by millrace topics): %w", topic, err)
	}
	return offsets.KOffsets(), nil
}

// describeResult returns a result event as a line for people.
func describeResult(record *kgo.Record) []byte {
	var r millrace.TaskResult
	if err := json.Unmarshal(record.Value, &r); err != nil || r.TaskID == "" {
		return fmt.Appendf(nil, "%s  not a result: partition %d, offset %d, key %q, %d bytes",
			record.Timestamp.Local().Format(time.TimeOnly), record.Partition, record.Offset, record.Key, len(record.Value))
	}
	at, took := r.FinishedAt, "-"
	if at.IsZero() {
		at = record.Timestamp
	} else if !r.StartedAt.IsZero() {
		took = r.FinishedAt.Sub(r.StartedAt).Round(time.Millisecond).String()
	}
	conversation := r.ConversationID
	if conversation == "" {
		conversation = "-"
	}
	text := fmt.Appendf(nil, "%s  %-9s  %s  %s  attempts=%d  took=%s", at.Local().Format(time.TimeOnly), r.Status, conversation, r.TaskID, r.Attempts, took)
	if r.Usage.Calls > 0 {
		text = fmt.Appendf(text, "  tokens=%d+%d", r.Usage.InputTokens, r.Usage.OutputTokens)
	}
	if r.Error != "" {
		return fmt.Appendf(text, "  error=%q", r.Error)
	}
	if len(r.Result) > 0 {
		text = append(append(text, "  "...), compact(r.Result)...)
	}
	return text
}

// compact returns JSON on one line, and what is no JSON as a JSON string.
func compact(value []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, value) == nil {
		return b.Bytes()
	}
	text, _ := json.Marshal(string(value)) // a string always encodes
	return text
}
