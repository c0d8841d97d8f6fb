package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/outbox"
)

// The statements of one group commit, in order. All of them travel in one round
// trip and form one transaction. Conversations are created and locked in sorted
// order before anything else, so concurrent batches cannot deadlock; what
// follows is written only for the completions that this very transaction
// inserted, which it knows by its token.
var (
	//go:embed sql/commit_1_conversations.sql
	createConversationsSQL string
	//go:embed sql/commit_2_lock.sql
	lockConversationsSQL string
	//go:embed sql/commit_3_completions.sql
	insertCompletionsSQL string
	//go:embed sql/commit_3_also.sql
	deleteOrphansSQL string
	//go:embed sql/commit_4_messages.sql
	insertMessagesSQL string
	//go:embed sql/commit_5_state.sql
	updateConversationsSQL string
	//go:embed sql/commit_6_outbox.sql
	insertOutboxSQL string
	//go:embed sql/commit_7_dead_letters.sql
	insertDeadLettersSQL string
	//go:embed sql/commit_8_steps.sql
	deleteStepsSQL string
	//go:embed sql/commit_9_outcomes.sql
	outcomesSQL string
)

// indexPlansSQL keeps the statements that follow from being planned for the size
// that a table has now. Their plans are kept with the connection, and one made for
// a small table would go on reading it from end to end while it grows.
const indexPlansSQL = `SELECT set_config('enable_seqscan', 'off', true)`

const (
	maxTextBytes  = 64 << 10
	maxLabelBytes = 1 << 10
)

// commitOnce runs one transaction for the batch.
func (s *Store) commitOnce(ctx context.Context, batch []*pendingCommit) ([]millrace.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	token := uuid.New()
	for _, p := range batch {
		p.tokens = append(p.tokens, token)
	}
	sql, err := s.buildBatch(token, batch)
	if err != nil {
		return nil, &refusedError{err}
	}
	found := make(map[millrace.Key]uuid.UUID, len(batch))
	keys := keyColumns(turnsOf(batch))
	sql.Queue(outcomesSQL, keys.ids, keys.redrives).Query(func(rows pgx.Rows) error {
		var (
			key millrace.Key
			by  uuid.UUID
		)
		_, err := pgx.ForEachRow(rows, []any{&key.ID, &key.Redrive, &by}, func() error {
			found[key] = by
			return nil
		})
		return err
	})
	if err := s.cfg.Pool.SendBatch(ctx, sql).Close(); err != nil {
		return nil, fmt.Errorf("commit %d turns: %w", len(batch), err)
	}
	outcomes := make([]millrace.Outcome, len(batch))
	for i, p := range batch {
		by, completed := found[p.completion.Task.Key()]
		switch {
		case !completed:
			outcomes[i] = millrace.Conflict
		case slices.Contains(p.tokens, by):
			outcomes[i] = millrace.Committed
		default:
			outcomes[i] = millrace.AlreadyCompleted
		}
	}
	return outcomes, nil
}

type keys struct {
	ids      []string
	redrives []int32
}

func keyColumns(cs []*millrace.Completion) keys {
	k := keys{ids: make([]string, len(cs)), redrives: make([]int32, len(cs))}
	for i, c := range cs {
		k.ids[i] = c.Task.ID
		k.redrives[i] = int32(c.Task.Redrive) //nolint:gosec // bounded by the codec
	}
	return k
}

// turnsOf returns the completions of a batch, one for each turn.
func turnsOf(batch []*pendingCommit) []*millrace.Completion {
	cs := make([]*millrace.Completion, len(batch))
	for i, p := range batch {
		cs[i] = &p.completion
	}
	return cs
}

// withAlso returns the completions of a batch, one for each task: those of the
// tasks that a turn has answered along with its own follow it. Of these, led
// holds the keys, and leaders those of the turns' own tasks.
func withAlso(batch []*pendingCommit) (cs []*millrace.Completion, led, leaders keys) {
	cs = turnsOf(batch)
	for i, p := range slices.Backward(batch) {
		var also []*millrace.Completion
		for j := range p.completion.Also {
			c := p.completion.Each(j)
			also = append(also, &c)
		}
		if len(also) == 0 {
			continue
		}
		cs = slices.Insert(cs, i+1, also...)
		k := keyColumns(also)
		led.ids, led.redrives = append(led.ids, k.ids...), append(led.redrives, k.redrives...)
		for range also {
			leaders.ids = append(leaders.ids, p.completion.Task.ID)
			leaders.redrives = append(leaders.redrives, int32(p.completion.Task.Redrive)) //nolint:gosec // bounded by the codec
		}
	}
	return cs, led, leaders
}

func (s *Store) buildBatch(token uuid.UUID, batch []*pendingCommit) (*pgx.Batch, error) {
	sql := &pgx.Batch{}
	sql.Queue(indexPlansSQL)
	var conversations []string
	for _, p := range batch {
		if n := sizeOf(&p.completion); n > maxCompletionBytes {
			return nil, fmt.Errorf("task %q: effects of %d bytes, at most %d", p.completion.Task.ID, n, maxCompletionBytes)
		}
		if id := p.completion.Task.Conversation; id != "" {
			conversations = append(conversations, id)
		}
	}
	if len(conversations) > 0 {
		slices.Sort(conversations)
		sql.Queue(createConversationsSQL, conversations)
		sql.Queue(lockConversationsSQL, conversations)
	}
	cs, led, leaders := withAlso(batch)
	queueCompletions(sql, token, cs)
	if len(led.ids) > 0 {
		sql.Queue(deleteOrphansSQL, token, led.ids, led.redrives, leaders.ids, leaders.redrives)
	}
	queueMessages(sql, token, cs)
	queueStates(sql, token, cs)
	if err := s.queueOutbox(sql, token, cs); err != nil {
		return nil, err
	}
	if err := queueDeadLetters(sql, token, cs); err != nil {
		return nil, err
	}
	k := keyColumns(cs)
	sql.Queue(deleteStepsSQL, token, k.ids, k.redrives)
	return sql, nil
}

func queueCompletions(sql *pgx.Batch, token uuid.UUID, cs []*millrace.Completion) {
	n := len(cs)
	k := keyColumns(cs)
	var (
		conversations, results              = make([]*string, n), make([]*string, n)
		expected                            = make([]*int64, n)
		tenants, types, priorities, statuss = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		attempts                            = make([]int32, n)
		errs                                = make([]string, n)
		calls, inputs, outputs              = make([]int64, n), make([]int64, n), make([]int64, n)
		started, finished                   = make([]time.Time, n), make([]time.Time, n)
	)
	for i, c := range cs {
		if c.Task.Conversation != "" {
			conversations[i] = &c.Task.Conversation
			if c.Effects.Touches() {
				expected[i] = &c.Base.Version
			}
		}
		tenants[i], types[i], priorities[i] = cleanLabel(c.Task.Tenant), cleanLabel(c.Task.Type), cleanLabel(string(c.Task.Priority))
		statuss[i], attempts[i] = string(c.Status), int32(c.Attempts) //nolint:gosec // a small count
		results[i] = jsonColumn(c.Effects.Result)
		errs[i] = cleanText(c.Error, maxTextBytes)
		u := c.Effects.Usage
		calls[i], inputs[i], outputs[i] = u.Calls, u.InputTokens, u.OutputTokens
		started[i], finished[i] = c.StartedAt, c.FinishedAt
	}
	sql.Queue(insertCompletionsSQL, token, k.ids, k.redrives, conversations, expected, tenants, types, priorities,
		statuss, attempts, results, errs, calls, inputs, outputs, started, finished)
}

func jsonColumn(raw json.RawMessage) *string {
	if raw == nil {
		return nil
	}
	s := string(raw)
	return &s
}

func queueMessages(sql *pgx.Batch, token uuid.UUID, cs []*millrace.Completion) {
	var (
		ids, conversations, roles []string
		redrives                  []int32
		ordinals                  []int64
		contents                  [][]byte
		ats                       []time.Time
	)
	for _, c := range cs {
		for i, m := range c.Effects.Messages {
			ids = append(ids, c.Task.ID)
			redrives = append(redrives, int32(c.Task.Redrive)) //nolint:gosec // bounded by the codec
			conversations = append(conversations, c.Task.Conversation)
			ordinals = append(ordinals, int64(i+1))
			roles = append(roles, m.Role)
			contents = append(contents, []byte(m.Content))
			ats = append(ats, c.FinishedAt)
		}
	}
	if len(ids) > 0 {
		sql.Queue(insertMessagesSQL, token, ids, redrives, conversations, ordinals, roles, contents, ats)
	}
}

func queueStates(sql *pgx.Batch, token uuid.UUID, cs []*millrace.Completion) {
	var (
		ids, conversations []string
		redrives           []int32
		states             []*string
		added              []int64
	)
	for _, c := range cs {
		if !c.Effects.Touches() {
			continue
		}
		ids = append(ids, c.Task.ID)
		redrives = append(redrives, int32(c.Task.Redrive)) //nolint:gosec // bounded by the codec
		conversations = append(conversations, c.Task.Conversation)
		states = append(states, jsonColumn(c.Effects.State))
		added = append(added, int64(len(c.Effects.Messages)))
	}
	if len(ids) > 0 {
		sql.Queue(updateConversationsSQL, token, ids, redrives, conversations, states, added)
	}
}

// queueOutbox adds the events of every turn and, unless results are dropped, its
// result event, which comes last.
func (s *Store) queueOutbox(sql *pgx.Batch, token uuid.UUID, cs []*millrace.Completion) error {
	var (
		ids                                    []string
		redrives                               []int32
		shards                                 []int16
		topics, eventIDs, eventTypes, contents []string
		headers                                []*string
		keys, data                             [][]byte
		ats                                    []time.Time
		foreign                                []string // keys that the conversation's lock does not cover
	)
	for _, c := range cs {
		messages, err := eventMessages(c, !s.cfg.DropResults)
		if err != nil {
			return err
		}
		for i := range messages {
			row, err := messages[i].Columns()
			if err != nil {
				return err
			}
			if messages[i].Key != c.EventKey() {
				foreign = append(foreign, messages[i].Key)
			}
			ids = append(ids, c.Task.ID)
			redrives = append(redrives, int32(c.Task.Redrive)) //nolint:gosec // bounded by the codec
			shards = append(shards, row.Shard)
			topics = append(topics, row.Topic)
			keys = append(keys, row.Key)
			eventIDs = append(eventIDs, row.EventID)
			eventTypes = append(eventTypes, row.EventType)
			contents = append(contents, row.ContentType)
			headers = append(headers, row.Headers)
			data = append(data, row.Data)
			ats = append(ats, row.At)
		}
	}
	if len(ids) > 0 {
		outbox.QueueKeyLocks(sql, foreign)
		sql.Queue(insertOutboxSQL, token, ids, redrives, shards, topics, keys, eventIDs, eventTypes, contents, headers, data, ats)
	}
	return nil
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

func queueDeadLetters(sql *pgx.Batch, token uuid.UUID, cs []*millrace.Completion) error {
	for _, c := range cs {
		d := c.DeadLetter
		if d == nil {
			continue
		}
		headers, err := outbox.EncodeHeaders(d.Record.Headers)
		if err != nil {
			return err
		}
		var conversation *string
		if c.Task.Conversation != "" {
			conversation = &c.Task.Conversation
		}
		sql.Queue(insertDeadLettersSQL, token, c.Task.ID, c.Task.Redrive, conversation, cleanLabel(c.Task.Tenant), cleanLabel(c.Task.Type),
			d.Reason, cleanText(d.Detail, maxTextBytes), cleanText(d.Stack, maxTextBytes), c.Attempts,
			d.Record.Topic, d.Record.Partition, d.Record.Offset, d.Record.Key, d.Record.Value,
			strings.ToValidUTF8(headers, ""), c.FinishedAt)
	}
	return nil
}
