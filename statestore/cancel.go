package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"time"

	"millrace"
)

//go:embed sql/cancel_run.sql
var cancelRunSQL string

// Cancel commits the end of a task with the status cancelled, unless it has
// ended, and returns what is known of it then: a final status that is not
// cancelled says that the task was done before.
//
// What commits first wins: a turn of the task that runs now, or is begun by a
// worker that has not heard of this, commits nothing. So a cancel may also come
// before its task. But then there is nothing to tell it from one of a task that
// will never be: a task that nothing is known of is [millrace.ErrNotFound] unless
// unseen says to take its id at its word.
func (s *Store) Cancel(ctx context.Context, id string, unseen bool) (millrace.TaskResult, error) {
	task := millrace.Task{ID: id}
	var (
		ended, scheduled bool
		priority         string
	)
	err := s.cfg.Pool.QueryRow(ctx, cancelRunSQL, id).Scan(&task.Redrive, &ended, &scheduled, &task.Conversation, &task.Tenant, &task.Type, &priority)
	if err != nil {
		return millrace.TaskResult{}, classify(fmt.Errorf("cancel task: %w", err))
	}
	if ended {
		return s.Task(ctx, id)
	}
	task.Priority = millrace.Priority(priority)
	if !scheduled {
		hint, err := s.hot.hint(ctx, id)
		if err != nil && task.Redrive == 0 && !unseen {
			// Redis does not know it, or does not answer, which leaves as little to go by.
			return millrace.TaskResult{}, fmt.Errorf("task %q: %w", id, millrace.ErrNotFound)
		}
		task.Conversation = hint.ConversationID
	}
	now := time.Now().UTC()
	p := &pendingCommit{completion: millrace.Completion{
		Task: task, Status: millrace.StatusCancelled, Base: millrace.Conversation{ID: task.Conversation},
		Error: "cancelled", StartedAt: now, FinishedAt: now,
	}}
	outcomes, err := s.commitRetrying(ctx, []*pendingCommit{p})
	if err != nil {
		return millrace.TaskResult{}, fmt.Errorf("cancel task: %w", err)
	}
	if outcomes[0] == millrace.AlreadyCompleted {
		return s.Task(ctx, id)
	}
	s.afterCommit(ctx, []*pendingCommit{p}, outcomes)
	if scheduled {
		s.unschedule(ctx, id)
	}
	s.tellCancel(ctx, millrace.Cancel{Key: task.Key(), Conversation: task.Conversation})
	return p.completion.TaskResult(), nil
}

// toldCancel is a cancel as Redis carries it.
type toldCancel struct {
	ID           string `json:"i"`
	Redrive      int    `json:"r,omitempty"`
	Conversation string `json:"c,omitempty"`
}

// tellCancel tells the workers. It only saves them a turn, so that a failure is
// no failure of the cancel.
func (s *Store) tellCancel(ctx context.Context, c millrace.Cancel) {
	body, err := json.Marshal(toldCancel{c.Key.ID, c.Key.Redrive, c.Conversation})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err = s.toldCancels().tell(ctx, body)
	}
	if err != nil {
		s.log.Warn().Err(err).Str("task", c.Key.ID).Msg("cannot tell the workers of a cancel; if the task runs, its turn is dropped when it ends")
	}
}

// cancels names the channel and the list of cancels.
func (s *Store) cancels() string { return s.cfg.KeyPrefix + "cancels" }

func (s *Store) toldCancels() told { return told{s.cfg.Redis, s.cancels(), "cancels"} }

// WatchCancels tells of cancels as they come, until ctx ends or Redis is lost. At
// first, and whenever the connection was lost and is there again, it tells of
// those of the last day, the newest 10,000 of them. It is a hint: whoever acts on
// it looks the completion up.
func (s *Store) WatchCancels(ctx context.Context, told func([]millrace.Cancel)) error {
	return s.toldCancels().watch(ctx, func(bodies []string) {
		if cancels := decodeCancels(bodies); len(cancels) > 0 {
			told(cancels)
		}
	})
}

// decodeCancels leaves out what is none: whatever else is in Redis must not keep
// workers from hearing of cancels.
func decodeCancels(bodies []string) []millrace.Cancel {
	cancels := make([]millrace.Cancel, 0, len(bodies))
	for _, body := range bodies {
		var c toldCancel
		if json.Unmarshal([]byte(body), &c) == nil && c.ID != "" {
			cancels = append(cancels, millrace.Cancel{Key: millrace.Key{ID: c.ID, Redrive: c.Redrive}, Conversation: c.Conversation})
		}
	}
	return cancels
}
