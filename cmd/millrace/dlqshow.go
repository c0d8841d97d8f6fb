package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"millrace/internal/app"
	"millrace/statestore"
)

func dlqShowCommand(c *cli) *cobra.Command {
	var value, asJSON bool
	command := &cobra.Command{
		Use:   "show ID",
		Short: "Show a dead letter with its record",
		Long: `Show all there is of a dead letter: why the task was given up on, and the record
as it was read. A value or key that is neither JSON nor text is shown in base64.`,
		Example: `  millrace dlq show 17
  millrace dlq show 17 --value > payload.bin
  millrace dlq show 17 --json | jq .record.value`,
		Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			id, err := parseLetterID(args[0])
			if err != nil {
				return err
			}
			return c.withDeadLetters(command.Context(), func(ctx context.Context, d *app.DeadLetters) error {
				letter, err := d.Get(ctx, id)
				if err != nil {
					return err
				}
				switch {
				case value:
					_, err = c.out.Write(letter.Record.Value)
				case asJSON:
					err = c.showJSON(&letter)
				default:
					_, err = c.out.Write(describeLetter(&letter))
				}
				return err
			})
		},
	}
	flags := command.Flags()
	flags.BoolVar(&value, "value", false, "print the record's value as it is, and nothing else")
	flags.BoolVar(&asJSON, "json", false, "print as JSON")
	command.MarkFlagsMutuallyExclusive("value", "json")
	return command
}

// describeLetter returns a dead letter as text for people.
func describeLetter(l *statestore.DeadLetter) []byte {
	var b bytes.Buffer
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, plain(fmt.Sprintf(format, args...)))
	}
	what := "task"
	if l.IsEvent() {
		what = "event"
	}
	line("dead letter", "%d", l.ID)
	line("came", "%s", localTime(l.At))
	line("reason", "%s", l.Reason)
	line("detail", "%s", l.Detail)
	line("attempts", "%d", l.Attempts)
	line(what, "%s", taskName(l.TaskID, l.Redrive))
	line("type", "%s", l.TaskType)
	if l.ConversationID != "" {
		line("conversation", "%s", l.ConversationID)
	}
	if l.Tenant != "" {
		line("tenant", "%s", l.Tenant)
	}
	if l.Priority != "" {
		line("priority", "%s", l.Priority)
	}
	switch {
	case l.RedrivenAs > 0:
		line("put back", "%s, as redrive %d", localTime(l.RedrivenAt), l.RedrivenAs)
	case !l.RedrivenAt.IsZero():
		line("put back", "%s", localTime(l.RedrivenAt))
	}
	line("topic", "%s", l.Topic)
	if l.Partition >= 0 {
		line("partition", "%d", l.Partition)
		line("offset", "%d", l.Offset)
	}
	line("key", "%s", display(l.Record.Key))
	for _, h := range l.Record.Headers {
		line("header", "%s: %s", h.Key, display(h.Value))
	}
	if l.HeadersErr != nil {
		line("headers", "%v", l.HeadersErr)
	}
	if l.Stack != "" {
		fmt.Fprintf(&b, "\nstack\n%s\n", strings.TrimRight(plain(l.Stack), "\n"))
	}
	fmt.Fprintf(&b, "\nvalue, %d bytes\n%s\n", len(l.Record.Value), display(l.Record.Value))
	return b.Bytes()
}

// display returns bytes as people can read them: JSON indented, text as it is,
// anything else in base64.
func display(value []byte) string {
	switch {
	case value == nil:
		return "(null)"
	case len(value) == 0:
		return "(empty)"
	case json.Valid(value):
		var b bytes.Buffer
		if json.Indent(&b, value, "", "  ") == nil && utf8.Valid(value) {
			return plain(b.String())
		}
	case isText(value):
		return strings.ReplaceAll(string(value), "\r\n", "\n")
	}
	return "base64: " + base64.StdEncoding.EncodeToString(value)
}

// plain replaces what a terminal would not print but obey.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '\uFFFD'
		}
		return r
	}, s)
}

func isText(value []byte) bool {
	text := bytes.ReplaceAll(value, []byte("\r\n"), []byte("\n"))
	return utf8.Valid(text) && bytes.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) < 0
}

// shownBytes are bytes in JSON: at most one of the two is set, neither for null.
type shownBytes struct {
	// Value holds JSON as it is and a text as a string.
	Value any `json:"value"`
	// Base64 holds what is neither.
	Base64 []byte `json:"value_base64,omitempty"`
}

func shown(value []byte, keepJSON bool) shownBytes {
	switch {
	case value == nil:
		return shownBytes{}
	case keepJSON && utf8.Valid(value) && json.Valid(value):
		return shownBytes{Value: json.RawMessage(value)}
	case utf8.Valid(value):
		return shownBytes{Value: string(value)}
	}
	return shownBytes{Base64: value}
}

type shownHeader struct {
	Key string `json:"key"`
	shownBytes
}

type shownRecord struct {
	Topic     string        `json:"topic"`
	Partition int32         `json:"partition"`
	Offset    int64         `json:"offset"`
	Key       any           `json:"key"`
	KeyBase64 []byte        `json:"key_base64,omitempty"`
	Headers   []shownHeader `json:"headers"`
	shownBytes
}

func (c *cli) showJSON(l *statestore.DeadLetter) error {
	key := shown(l.Record.Key, false)
	record := shownRecord{
		Topic: l.Topic, Partition: l.Partition, Offset: l.Offset, Key: key.Value, KeyBase64: key.Base64,
		Headers: []shownHeader{}, shownBytes: shown(l.Record.Value, true),
	}
	for _, h := range l.Record.Headers {
		record.Headers = append(record.Headers, shownHeader{h.Key, shown(h.Value, false)})
	}
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		statestore.DeadLetter
		Stack  string      `json:"stack,omitempty"`
		Record shownRecord `json:"record"`
	}{*l, l.Stack, record})
}
