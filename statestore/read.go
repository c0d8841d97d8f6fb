package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace"
)

// lastMessagesSQL goes newest first to use the index, then turns around.
const lastMessagesSQL = `SELECT seq, role, content, task_id, at FROM (
	SELECT seq, role, content, task_id, at FROM millrace.messages
	WHERE conversation_id = $1 AND seq <= $2 AND seq > (SELECT erased FROM millrace.conversations WHERE id = $1)
	ORDER BY seq DESC LIMIT $3
) AS newest ORDER BY seq`

func scanMessage(row pgx.CollectableRow) (millrace.Message, error) {
	var (
		m       millrace.Message
		content []byte
	)
	err := row.Scan(&m.Seq, &m.Role, &content, &m.TaskID, &m.At)
	m.Content, m.At = string(content), m.At.UTC()
	return m, err
}

// History returns the last n messages up to and including sequence number last,
// oldest first.
func (s *Store) History(ctx context.Context, conversation string, last int64, n int) ([]millrace.Message, error) {
	rows, err := s.cfg.Pool.Query(ctx, lastMessagesSQL, conversation, last, n)
	if err != nil {
		return nil, classify(fmt.Errorf("read history: %w", err))
	}
	messages, err := pgx.CollectRows(rows, scanMessage)
	if err != nil {
		return nil, classify(fmt.Errorf("read history: %w", err))
	}
	return messages, nil
}

//go:embed sql/task.sql
var taskSQL string

// Task returns what is known of a task: the newest completion, or else the hint
// in Redis that it is queued or running, or else that it is held back until its
// time, or [millrace.ErrNotFound].
func (s *Store) Task(ctx context.Context, id string) (millrace.TaskResult, error) {
	r := millrace.TaskResult{TaskID: id}
	var result *string
	err := s.cfg.Pool.QueryRow(ctx, taskSQL, id).Scan(&r.ConversationID, &r.Status, &r.Attempts, &result,
		&r.Usage.Calls, &r.Usage.InputTokens, &r.Usage.OutputTokens, &r.Error, &r.StartedAt, &r.FinishedAt)
	switch {
	case err == nil:
		if result != nil {
			r.Result = json.RawMessage(*result)
		}
		r.StartedAt, r.FinishedAt = r.StartedAt.UTC(), r.FinishedAt.UTC()
		return r, nil
	case !errors.Is(err, pgx.ErrNoRows):
		return millrace.TaskResult{}, classify(fmt.Errorf("read task: %w", err))
	}
	r, err = s.hot.hint(ctx, id)
	if err != nil {
		var scheduledErr error
		if r, scheduledErr = s.scheduled(ctx, id); errors.Is(scheduledErr, millrace.ErrNotFound) {
			return r, fmt.Errorf("task %q: %w", id, err)
		} else if scheduledErr != nil {
			return r, scheduledErr
		}
	}
	return r, nil
}

// Queued leaves the hint that tasks have been accepted, so that their status
// can be told before a worker has seen them.
func (s *Store) Queued(ctx context.Context, tasks []millrace.Task) error {
	return s.hot.queued(ctx, tasks)
}

//go:embed sql/dead_letters.sql
var deadLettersSQL string

// DeadLetters lists dead letters in the order they came, from after the given
// id on.
func (s *Store) DeadLetters(ctx context.Context, after int64, limit int) ([]millrace.DeadLetterEntry, error) {
	rows, err := s.cfg.Pool.Query(ctx, deadLettersSQL, after, limit)
	if err != nil {
		return nil, classify(fmt.Errorf("list dead letters: %w", err))
	}
	entries, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (millrace.DeadLetterEntry, error) {
		var e millrace.DeadLetterEntry
		err := row.Scan(&e.ID, &e.TaskID, &e.Redrive, &e.ConversationID, &e.TaskType, &e.Reason, &e.Detail, &e.Attempts,
			&e.Topic, &e.Partition, &e.Offset, &e.At)
		return e, err
	})
	if err != nil {
		return nil, classify(fmt.Errorf("list dead letters: %w", err))
	}
	return entries, nil
}
