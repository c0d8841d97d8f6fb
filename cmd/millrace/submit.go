package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace"
	"millrace/internal/settings"
)

func init() { register(submitCommand) }

type submitFlags struct {
	conversation, kind, priority, tenant, onBusy, payload string
	deadline, delay                                       time.Duration
	runAt                                                 string
	attributes                                            map[string]string
	idempotencyKey                                        string
	batch                                                 string
	wait                                                  bool
	timeout                                               time.Duration
}

func submitCommand(c *cli) *cobra.Command {
	var f submitFlags
	command := &cobra.Command{
		Use:   "submit",
		Short: "Send tasks to the API",
		Long: `Send a task, or a batch of them, to the API at MILLRACE_URL, and print the id of
each. A task that was printed is durable, also one that is held back. When the API has too much waiting, the
command sends again at the time that it asks for.

With --wait, the result of each is printed instead, as JSON, once it is done;
exit code 1 says that a task failed.`,
		Example: `  millrace submit --conversation c1 --payload '{"text":"hi"}' --wait
  millrace submit --conversation c1 --type chat.message --priority high --payload @turn.json
  millrace submit --conversation c1 --payload '"remind me"' --delay 24h
  jq -c '{conversation:.id, type:"chat.message", payload:.}' turns.json | millrace submit --batch -`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			single := command.Flags().Changed("payload")
			if single == (f.batch != "") {
				return usage("want either --payload or --batch")
			}
			if f.batch != "" {
				for _, name := range []string{"conversation", "type", "priority", "tenant", "deadline", "run-at", "delay", "on-busy", "attribute"} {
					if command.Flags().Changed(name) {
						return usage("--%s does not go with --batch, whose lines say it", name)
					}
				}
			}
			if command.Flags().Changed("deadline") && f.deadline <= 0 {
				return usage("--deadline %s: want more than 0, counted from now", f.deadline)
			}
			if command.Flags().Changed("run-at") && command.Flags().Changed("delay") {
				return usage("want either --run-at or --delay")
			}
			if _, err := time.Parse(time.RFC3339Nano, f.runAt); err != nil && f.runAt != "" {
				return usage("--run-at %q: want an RFC 3339 time, such as %s", f.runAt, time.Now().Add(time.Hour).Format(time.RFC3339))
			}
			if f.delay < 0 {
				return usage("--delay %s: want 0 or more, counted from now", f.delay)
			}
			if f.timeout <= 0 {
				return usage("--timeout %s: want more than 0", f.timeout)
			}
			if err := millrace.OnBusy(f.onBusy).Validate(); err != nil {
				return usage("--on-busy: %w", err)
			}
			return c.submit(command.Context(), f)
		},
	}
	flags := command.Flags()
	flags.StringVar(&f.payload, "payload", "", "the task's input: JSON, @FILE, or - for standard input")
	flags.StringVar(&f.conversation, "conversation", "", "the conversation whose tasks run in order; without one there is no order")
	flags.StringVar(&f.kind, "type", millrace.DefaultType, "the task's type")
	flags.StringVar(&f.priority, "priority", "", "the priority to wish for; rules may decide otherwise")
	flags.StringVar(&f.tenant, "tenant", "", "on whose behalf the task runs")
	flags.StringVar(&f.onBusy, "on-busy", "", "what to do if another task of the conversation runs or waits: enqueue, coalesce, interrupt or reject")
	flags.DurationVar(&f.deadline, "deadline", 0, "give the task up after this time")
	flags.StringVar(&f.runAt, "run-at", "", "hold the task back until this RFC 3339 `time`, at most a year ahead")
	flags.DurationVar(&f.delay, "delay", 0, "hold the task back for this time")
	flags.StringToStringVar(&f.attributes, "attribute", nil, "further `name=value` for rules to look at")
	flags.StringVar(&f.idempotencyKey, "idempotency-key", "", "a repeat with the same key is the same task (or, line by line, the same batch)")
	flags.StringVar(&f.batch, "batch", "", "send the tasks in this `file` (- for standard input): one JSON object a line, as POST /v1/tasks takes them")
	flags.BoolVar(&f.wait, "wait", false, "wait until the tasks are done, and print their results")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "give up after this time")
	return command
}

func (c *cli) submit(ctx context.Context, f submitFlags) error {
	s, err := c.settings(settings.RoleTool)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("not done within %s (--timeout)", f.timeout))
	defer cancel()
	api := newAPI(s.URL)
	defer api.close()
	if f.batch != "" {
		in, err := c.open("--batch", f.batch)
		if err != nil {
			return err
		}
		defer in.Close() //nolint:errcheck // it was only read
		b := &batchSender{c: c, api: api, key: f.idempotencyKey, wait: f.wait}
		return b.send(ctx, in)
	}
	body, err := c.taskBody(f)
	if err != nil {
		return err
	}
	id, err := api.submit(ctx, body, f.idempotencyKey)
	if err != nil {
		return err
	}
	if !f.wait {
		_, err := fmt.Fprintln(c.out, id)
		return err
	}
	return c.printResult(ctx, api, id)
}

// taskBody returns the body of POST /v1/tasks.
func (c *cli) taskBody(f submitFlags) ([]byte, error) {
	payload := []byte(f.payload)
	if path, isFile := strings.CutPrefix(f.payload, "@"); isFile || path == "-" {
		in, err := c.open("--payload", path)
		if err != nil {
			return nil, err
		}
		defer in.Close() //nolint:errcheck // it was only read
		if payload, err = io.ReadAll(in); err != nil {
			return nil, fmt.Errorf("read payload: %w", err)
		}
	}
	if !json.Valid(payload) {
		return nil, usage(`--payload is not JSON; a text goes in quotes of its own: --payload '"hello"'`)
	}
	task := struct {
		Conversation *string           `json:"conversation"`
		Type         string            `json:"type"`
		Payload      json.RawMessage   `json:"payload"`
		Priority     string            `json:"priority,omitempty"`
		Tenant       string            `json:"tenant,omitempty"`
		OnBusy       string            `json:"on_busy,omitempty"`
		Deadline     *time.Time        `json:"deadline,omitempty"`
		RunAt        string            `json:"run_at,omitempty"`
		Attributes   map[string]string `json:"attributes,omitempty"`
	}{Type: f.kind, Payload: bytes.TrimSpace(payload), Priority: f.priority, Tenant: f.tenant, OnBusy: f.onBusy, RunAt: f.runAt, Attributes: f.attributes}
	if f.conversation != "" {
		task.Conversation = &f.conversation
	}
	if f.deadline != 0 {
		at := time.Now().Add(f.deadline).UTC()
		task.Deadline = &at
	}
	if f.delay > 0 {
		task.RunAt = time.Now().Add(f.delay).UTC().Format(time.RFC3339Nano)
	}
	body, err := json.Marshal(task)
	if err != nil {
		return nil, fmt.Errorf("encode task: %w", err)
	}
	return body, nil
}

// open opens the file that a flag names, or standard input for "-". A file that
// cannot be opened is a wrong call.
func (c *cli) open(flag, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(c.in), nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, usage("%s: %w", flag, err)
	}
	return file, nil
}

// errTaskFailed is for a task that came to an end, but not to its result.
var errTaskFailed = errors.New("the task failed")

// printResult waits for a task and prints its result.
func (c *cli) printResult(ctx context.Context, api *api, id string) error {
	result, raw, err := api.wait(ctx, id)
	if err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	if _, err := fmt.Fprintf(c.out, "%s\n", bytes.TrimSpace(raw)); err != nil {
		return err
	}
	if result.Status != millrace.StatusCompleted {
		return fmt.Errorf("task %s: %w (%s): %s", id, errTaskFailed, result.Status, result.Error)
	}
	return nil
}
