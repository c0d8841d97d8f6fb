package statestore

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"millrace"
	"millrace/outbox"
)

// appendTaskColumns adds the tasks of a batch as columns: one array for each
// parameter of the statement.
func appendTaskColumns(args []any, tasks []endingTask) []any {
	n := len(tasks)
	var (
		k                                    = keys{make([]string, 0, n), make([]int32, 0, n)}
		leaders, attempts                    = make([]int32, n), make([]int32, n)
		conversations, results, states       = make([]*string, n), make([]*string, n), make([]*string, n)
		expected                             = make([]*int64, n)
		tenants, types, priorities, statuses = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		errs                                 = make([]string, n)
		calls, inputs, outputs               = make([]int64, n), make([]int64, n), make([]int64, n)
		started, finished                    = make([]time.Time, n), make([]time.Time, n)
		added                                = make([]*int32, n)
	)
	for i := range tasks {
		c := tasks[i].Completion
		k.add(&c.Task)
		leaders[i] = int32(tasks[i].leader) //nolint:gosec // at most as many as tasks
		if c.Task.Conversation != "" {
			conversations[i] = &c.Task.Conversation
			if c.Effects.Touches() {
				expected[i] = &c.Base.Version
				more := int32(len(c.Effects.Messages)) //nolint:gosec // bounded by their bytes
				states[i], added[i] = jsonColumn(c.Effects.State), &more
			} else if c.Status == millrace.StatusCompleted {
				expected[i] = &c.Base.Version // what it has emitted, or left alone, follows from what it has seen
			}
		}
		tenants[i], types[i], priorities[i] = cleanLabel(c.Task.Tenant), cleanLabel(c.Task.Type), cleanLabel(string(c.Task.Priority))
		statuses[i], attempts[i] = string(c.Status), int32(c.Attempts) //nolint:gosec // a small count
		results[i] = jsonColumn(c.Effects.Result)
		errs[i] = cleanText(c.Error, maxTextBytes)
		u := c.Effects.Usage
		calls[i], inputs[i], outputs[i] = u.Calls, u.InputTokens, u.OutputTokens
		started[i], finished[i] = c.StartedAt, c.FinishedAt
	}
	return append(args, k.ids, k.redrives, leaders, conversations, expected, tenants, types, priorities,
		statuses, attempts, results, errs, calls, inputs, outputs, started, finished, states, added)
}

func jsonColumn(raw json.RawMessage) *string {
	if raw == nil {
		return nil
	}
	s := string(raw)
	return &s
}

func appendMessageColumns(args []any, tasks []endingTask) []any {
	n := 0
	for i := range tasks {
		n += len(tasks[i].Effects.Messages)
	}
	var (
		places, numbers = make([]int32, 0, n), make([]int32, 0, n)
		roles           = make([]string, 0, n)
		contents        = make([][]byte, 0, n)
	)
	for i := range tasks {
		for j, m := range tasks[i].Effects.Messages {
			places = append(places, int32(i+1))
			numbers = append(numbers, int32(j+1))
			roles = append(roles, m.Role)
			contents = append(contents, []byte(m.Content))
		}
	}
	return append(args, places, roles, contents, numbers)
}

// eventColumns are rows of the outbox.
type eventColumns struct {
	places                                 []int32
	shards                                 []int16
	topics, eventIDs, eventTypes, contents []string
	headers                                []*string
	keys, data                             [][]byte
	foreign                                []string // keys that the conversation's lock does not cover
}

func (e *eventColumns) appendTo(args []any) []any {
	return append(args, e.places, e.shards, e.topics, e.keys, e.eventIDs, e.eventTypes, e.contents, e.headers, e.data)
}

// eventColumns returns the events of every task and, unless results are dropped,
// its result event, which comes last.
func (s *Store) eventColumns(tasks []endingTask) (e eventColumns, err error) {
	for i := range tasks {
		c := tasks[i].Completion
		messages, err := eventMessages(c, !s.cfg.DropResults)
		if err != nil {
			return e, err
		}
		for j := range messages {
			row, err := messages[j].Columns()
			if err != nil {
				return e, err
			}
			if messages[j].Key != c.EventKey() {
				e.foreign = append(e.foreign, messages[j].Key)
			}
			e.places = append(e.places, int32(i+1))
			e.shards = append(e.shards, row.Shard)
			e.topics = append(e.topics, row.Topic)
			e.keys = append(e.keys, row.Key)
			e.eventIDs = append(e.eventIDs, row.EventID)
			e.eventTypes = append(e.eventTypes, row.EventType)
			e.contents = append(e.contents, row.ContentType)
			e.headers = append(e.headers, row.Headers)
			e.data = append(e.data, row.Data)
		}
	}
	return e, nil
}

func eventMessages(c *millrace.Completion, withResult bool) ([]outbox.Message, error) {
	key := c.EventKey()
	var out []outbox.Message
	for i, e := range c.Effects.Events {
		m := outbox.Message{
			ID: millrace.EventID(c.Task.Key(), i), Type: e.Type, Topic: e.Topic,
			Key: e.Key, ContentType: e.ContentType, Data: e.Data, At: c.FinishedAt,
		}
		if m.Key == "" {
			m.Key = key
		}
		if m.ContentType == "" {
			m.ContentType = millrace.JSON
		}
		out = append(out, m)
	}
	if d := c.DeadLetter; d != nil {
		out = append(out, deadLetterMessage(c, d))
	}
	if !withResult {
		return out, nil
	}
	value, err := resultValue(c)
	if err != nil {
		return nil, fmt.Errorf("encode result of task %q: %w", c.Task.ID, err)
	}
	return append(out, outbox.Message{
		ID: millrace.ResultEventID(c.Task.Key()), Type: millrace.ResultEventType(c.Status),
		Key: key, ContentType: millrace.JSON, Data: value, At: c.FinishedAt,
	}), nil
}

// resultValue is the value of the result event. A result that makes it too large
// for Kafka is left out and stays readable by the task's id: the event that a
// task has ended must come in any case.
func resultValue(c *millrace.Completion) ([]byte, error) {
	r := c.TaskResult()
	r.Error = cleanText(r.Error, maxTextBytes)
	value, err := json.Marshal(r)
	if err != nil || len(value) <= millrace.MaxEventBytes {
		return value, err
	}
	r.Result, r.ResultOmitted = nil, true
	return json.Marshal(r)
}

// deadLetterMessage is the dead letter as a record: the value as it was read, and
// in its headers why it was given up on and where it lay. A value that leaves no
// room for these is cut; the table has it whole.
func deadLetterMessage(c *millrace.Completion, d *millrace.DeadLetter) outbox.Message {
	header := func(key, value string) millrace.Header {
		return millrace.Header{Key: key, Value: []byte(value)}
	}
	value := d.Record.Value
	if len(value) > millrace.MaxEventBytes {
		value = value[:millrace.MaxEventBytes]
	}
	return outbox.Message{
		ID: millrace.DeadLetterEventID(c.Task.Key()), Type: millrace.EventTaskDeadLetter, Topic: outbox.DeadLettersTopic,
		Key: c.EventKey(), ContentType: cleanLabel(c.Task.ContentType), Data: value, At: c.FinishedAt,
		Headers: []millrace.Header{
			header("ce_taskid", c.Task.ID),
			header("ce_tasktype", c.Task.Type),
			header("ce_reason", d.Reason),
			header("ce_detail", cleanText(d.Detail, 1024)),
			header("ce_attempts", strconv.Itoa(c.Attempts)),
			header("ce_origintopic", d.Record.Topic),
			header("ce_originpartition", strconv.Itoa(int(d.Record.Partition))),
			header("ce_originoffset", strconv.FormatInt(d.Record.Offset, 10)),
			header("ce_cut", strconv.FormatBool(len(value) < len(d.Record.Value))),
		},
	}
}
