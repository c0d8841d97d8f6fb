package statestore

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"millrace"
)

//go:embed sql/step_begin.sql
var beginStepSQL string

//go:embed sql/step_restart.sql
var restartStepSQL string

//go:embed sql/step_finish.sql
var finishStepSQL string

// Begin implements [millrace.Journal]. An intent that is found without an
// outcome is ambiguous: an earlier run may have made the call. It is made again,
// and counted.
func (s *Store) Begin(ctx context.Context, step millrace.Step) (millrace.StepResult, bool, error) {
	var (
		inserted    bool
		hash        []byte
		baseVersion int64
		result      millrace.StepResult
	)
	err := s.cfg.Pool.QueryRow(ctx, beginStepSQL, step.Task.ID, step.Task.Redrive, step.Name,
		step.RequestHash[:], step.BaseVersion, s.incarnation, given(step.Conversation)).
		Scan(&inserted, &hash, &baseVersion, &result.Output, &result.Usage.Calls, &result.Usage.InputTokens, &result.Usage.OutputTokens)
	if errors.Is(err, pgx.ErrNoRows) {
		// Another run of this task inserted the step between the statement's snapshot
		// and its insert.
		return millrace.StepResult{}, false, millrace.Unavailable(errors.New("another run of the task has just begun this step"))
	}
	if err != nil {
		return millrace.StepResult{}, false, classify(err)
	}
	switch {
	case inserted:
		return millrace.StepResult{}, false, nil
	case baseVersion > step.BaseVersion:
		return millrace.StepResult{}, false, millrace.Unavailable(fmt.Errorf(
			"another run of the task is ahead: it began this step on version %d of the conversation, this run on %d", baseVersion, step.BaseVersion))
	case baseVersion == step.BaseVersion && !bytes.Equal(hash, step.RequestHash[:]):
		return millrace.StepResult{}, false, millrace.Permanent(&millrace.StepMismatchError{Step: step.Name})
	case baseVersion == step.BaseVersion && result.Output != nil:
		return result, true, nil
	}
	tag, err := s.cfg.Pool.Exec(ctx, restartStepSQL, step.Task.ID, step.Task.Redrive, step.Name,
		step.RequestHash[:], step.BaseVersion, s.incarnation, baseVersion, result.Output != nil)
	if err != nil {
		return millrace.StepResult{}, false, classify(err)
	}
	if tag.RowsAffected() == 0 {
		return millrace.StepResult{}, false, millrace.Unavailable(errors.New("another run of the task has just changed this step, or completed the task"))
	}
	if result.Output != nil {
		s.metrics.repaid.WithLabelValues("conflict").Inc()
	} else {
		s.metrics.ambiguous.Inc()
	}
	return millrace.StepResult{}, false, nil
}

// Finish implements [millrace.Journal].
func (s *Store) Finish(ctx context.Context, step millrace.Step, result millrace.StepResult) error {
	if result.Output == nil {
		result.Output = []byte{} // null is what marks a step without an outcome
	}
	tag, err := s.cfg.Pool.Exec(ctx, finishStepSQL, step.Task.ID, step.Task.Redrive, step.Name, s.incarnation, step.BaseVersion,
		result.Output, result.Usage.Calls, result.Usage.InputTokens, result.Usage.OutputTokens)
	if err != nil {
		return classify(err)
	}
	if tag.RowsAffected() == 0 {
		return millrace.Unavailable(errors.New("another run of the task has taken this step over, finished it, or completed the task"))
	}
	return nil
}
