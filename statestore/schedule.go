package statestore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/outbox"
)

var (
	//go:embed sql/schedule.sql
	scheduleSQL string
	//go:embed sql/scheduled.sql
	scheduledSQL string
)

// Schedule makes tasks durable that are to be held back until their time, all of
// them or none; a [Releaser] sends them then. A task that is known stays as it is,
// with the time that it has: one that waits, that was released, or that has ended.
// So a repeat is none, for as long as the completion is kept.
//
// An error that is [millrace.IsUnavailable] leaves the outcome open, and the same
// call again settles it.
func (s *Store) Schedule(ctx context.Context, tasks []millrace.ScheduledTask) error {
	n := len(tasks)
	if n == 0 {
		return nil
	}
	var (
		ids, tenants, types, priorities = make([]string, n), make([]string, n), make([]string, n), make([]string, n)
		contentTypes, headers           = make([]string, n), make([]string, n)
		conversations                   = make([]*string, n)
		times                           = make([]time.Time, n)
		payloads                        = make([][]byte, n)
	)
	for i := range tasks {
		t := &tasks[i].Task
		record, err := t.Record()
		if err != nil {
			return fmt.Errorf("schedule task %q: %w", t.ID, err)
		}
		if headers[i], err = outbox.EncodeHeaders(heldHeaders(record.Headers)); err != nil {
			return fmt.Errorf("schedule task %q: %w", t.ID, err)
		}
		ids[i], tenants[i], types[i], priorities[i], contentTypes[i] = t.ID, t.Tenant, t.Type, string(t.Priority), t.ContentType
		payloads[i] = record.Value
		if t.Conversation != "" {
			conversations[i] = &t.Conversation
		}
		// The column holds microseconds, and a task is not released before its time.
		times[i] = tasks[i].RunAt.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	}
	_, err := s.cfg.Pool.Exec(ctx, scheduleSQL, ids, times, conversations, tenants, types, priorities, contentTypes, headers, payloads)
	if err != nil {
		return classify(fmt.Errorf("schedule %d tasks: %w", n, err))
	}
	return nil
}

// heldHeaders leaves out what the relay writes of a row's own columns: the id and
// the type, and for the time the one at which the task was to run.
func heldHeaders(headers []millrace.Header) []millrace.Header {
	kept := make([]millrace.Header, 0, len(headers))
	for _, h := range headers {
		switch h.Key {
		case "ce_specversion", "ce_id", "ce_type", "ce_time", "content-type":
		default:
			kept = append(kept, h)
		}
	}
	return kept
}

// scheduled returns a task that is held back, or that has been and was released:
// it is queued then, with no time to wait for.
func (s *Store) scheduled(ctx context.Context, id string) (millrace.TaskResult, error) {
	r := millrace.TaskResult{TaskID: id, Status: millrace.StatusQueued}
	var runAt *time.Time
	err := s.cfg.Pool.QueryRow(ctx, scheduledSQL, id).Scan(&r.ConversationID, &runAt)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return millrace.TaskResult{}, millrace.ErrNotFound
	case err != nil:
		return millrace.TaskResult{}, classify(fmt.Errorf("read scheduled task: %w", err))
	}
	if runAt != nil {
		r.RunAt = runAt.UTC()
	}
	return r, nil
}

// unschedule drops the row of a task that has been cancelled while it waited. A
// row that is left is dropped when its time comes.
func (s *Store) unschedule(ctx context.Context, id string) {
	_, err := s.cfg.Pool.Exec(ctx, `DELETE FROM millrace.scheduled WHERE task_id = $1 AND released_at IS NULL`, id)
	if err != nil {
		s.log.Warn().Err(err).Str("task", id).Msg("cannot drop a cancelled task that waits for its time; it is dropped then")
	}
}
