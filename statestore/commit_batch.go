package statestore

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/outbox"
)

// The statements of one group commit, in order. All of them travel in one round
// trip and form one transaction. Conversations are created and locked in sorted
// order before anything else, so concurrent batches cannot deadlock. The lock is a
// statement of its own: what follows sees the conversations as they are once they
// are locked, because at read committed every statement has a snapshot of its own,
// and the parts of one statement share theirs.
var (
	//go:embed sql/commit_1_conversations.sql
	createConversationsSQL string
	//go:embed sql/commit_2_lock.sql
	lockConversationsSQL string
	//go:embed sql/commit_3_effects.sql
	writeEffectsSQL string
	//go:embed sql/commit_4_also.sql
	deleteOrphansSQL string
	//go:embed sql/commit_5_dead_letters.sql
	insertDeadLettersSQL string
)

// outcomesSQL tells what became of the turns that a transaction has left out.
//
//go:embed sql/commit_outcomes.sql
var outcomesSQL string

// indexPlansSQL keeps the statements that follow from being planned for the size
// that a table has now. Their plans are kept with the connection, and one made for
// a small table would go on reading it from end to end while it grows.
const indexPlansSQL = `SELECT set_config('enable_seqscan', 'off', true)`

const (
	maxTextBytes  = 64 << 10
	maxLabelBytes = 1 << 10
)

// sender runs the statements of a batch: a pool as one transaction, a transaction
// as part of it.
type sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// commitOnce runs one transaction for the batch.
func (s *Store) commitOnce(ctx context.Context, batch []*pendingCommit) ([]millrace.Outcome, error) {
	return s.commitOn(ctx, s.cfg.Pool, batch)
}

// commitOn runs the statements that commit a batch. They are a transaction, or the
// last ones of the one that they are sent in.
func (s *Store) commitOn(ctx context.Context, on sender, batch []*pendingCommit) ([]millrace.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	token := uuid.New()
	for _, p := range batch {
		p.tokens = append(p.tokens, token)
	}
	tasks := endingTasks(batch)
	var written []int32
	sql, err := s.buildBatch(token, batch, tasks, &written)
	if err != nil {
		return nil, &refusedError{err}
	}
	if err := on.SendBatch(ctx, sql).Close(); err != nil {
		return nil, fmt.Errorf("commit %d turns: %w", len(batch), err)
	}
	outcomes := make([]millrace.Outcome, len(batch))
	for _, place := range written {
		if t := &tasks[place-1]; t.leader == int(place) {
			outcomes[t.turn] = millrace.Committed
		}
	}
	return outcomes, s.settle(ctx, batch, outcomes)
}

// settle finds out why turns were left out of a transaction that has committed.
// It looks after the transaction's end: what another one committed while this one
// waited for it shows only to statements that begin after that.
func (s *Store) settle(ctx context.Context, batch []*pendingCommit, outcomes []millrace.Outcome) error {
	left := make(map[millrace.Key]int)
	var k keys
	for i, p := range batch {
		if outcomes[i] == millrace.Committed {
			continue
		}
		outcomes[i] = millrace.Conflict
		left[p.completion.Task.Key()] = i
		k.add(&p.completion.Task)
	}
	if len(left) == 0 {
		return nil
	}
	rows, err := s.cfg.Pool.Query(ctx, outcomesSQL, k.ids, k.redrives)
	if err != nil {
		return fmt.Errorf("look up the outcome of %d turns: %w", len(left), err)
	}
	var (
		key millrace.Key
		by  uuid.UUID
	)
	_, err = pgx.ForEachRow(rows, []any{&key.ID, &key.Redrive, &by}, func() error {
		i := left[key]
		outcomes[i] = millrace.AlreadyCompleted
		if slices.Contains(batch[i].tokens, by) {
			outcomes[i] = millrace.Committed
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up the outcome of %d turns: %w", len(left), err)
	}
	return nil
}

type keys struct {
	ids      []string
	redrives []int32
}

func (k *keys) add(t *millrace.Task) {
	k.ids = append(k.ids, t.ID)
	k.redrives = append(k.redrives, int32(t.Redrive)) //nolint:gosec // bounded by the codec
}

// endingTask is a task that a batch ends: a turn's own, or one that the turn has
// answered along with it.
type endingTask struct {
	*millrace.Completion
	turn   int // index of the turn in the batch
	leader int // place of the turn's own task, from 1
}

// endingTasks returns the tasks of a batch. Those that a turn has answered along with
// its own follow it.
func endingTasks(batch []*pendingCommit) []endingTask {
	tasks := make([]endingTask, 0, len(batch))
	for i, p := range batch {
		leader := len(tasks) + 1
		tasks = append(tasks, endingTask{&p.completion, i, leader})
		for j := range p.completion.Also {
			c := p.completion.Each(j)
			tasks = append(tasks, endingTask{&c, i, leader})
		}
	}
	return tasks
}

func (s *Store) buildBatch(token uuid.UUID, batch []*pendingCommit, tasks []endingTask, written *[]int32) (*pgx.Batch, error) {
	sql := &pgx.Batch{}
	sql.Queue(indexPlansSQL)
	var conversations, perhapsNew []string
	for _, p := range batch {
		c := &p.completion
		if n := sizeOf(c); n > maxCompletionBytes {
			return nil, fmt.Errorf("task %q: effects of %d bytes, at most %d", c.Task.ID, n, maxCompletionBytes)
		}
		if id := c.Task.Conversation; id != "" {
			conversations = append(conversations, id)
			if c.Base.Version == 0 {
				perhapsNew = append(perhapsNew, id)
			}
		}
	}
	if len(perhapsNew) > 0 {
		slices.Sort(perhapsNew)
		sql.Queue(createConversationsSQL, perhapsNew)
	}
	if len(conversations) > 0 {
		sql.Queue(lockConversationsSQL, conversations)
	}
	events, err := s.eventColumns(tasks)
	if err != nil {
		return nil, err
	}
	outbox.QueueKeyLocks(sql, events.foreign)
	args := append(make([]any, 0, 33), token)
	args = appendTaskColumns(args, tasks)
	args = appendMessageColumns(args, tasks)
	args = events.appendTo(args)
	sql.Queue(writeEffectsSQL, args...).QueryRow(func(row pgx.Row) error { return row.Scan(written) })
	if err := queueDeadLetters(sql, token, tasks); err != nil {
		return nil, err
	}
	return sql, nil
}

// queueDeadLetters adds what few transactions need: they take out again what came
// in without its turn, and keep the records of dead letters.
func queueDeadLetters(sql *pgx.Batch, token uuid.UUID, tasks []endingTask) error {
	var led, leaders keys
	for i := range tasks {
		if t := &tasks[i]; t.leader != i+1 {
			led.add(&t.Task)
			leaders.add(&tasks[t.leader-1].Task)
		}
	}
	if len(led.ids) > 0 {
		sql.Queue(deleteOrphansSQL, token, led.ids, led.redrives, leaders.ids, leaders.redrives)
	}
	for i := range tasks {
		c := tasks[i].Completion
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
