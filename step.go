package millrace

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
)

// Step names one journaled call inside a turn: an LLM call or a tool call.
type Step struct {
	Task Key
	// Conversation is the task's. Empty: it has none.
	Conversation string
	// Name is unique within the turn and the same whenever the turn is run again.
	Name string
	// RequestHash is the SHA-256 of the request.
	RequestHash [sha256.Size]byte
	// BaseVersion is the conversation version that the turn runs on.
	BaseVersion int64
}

// StepResult is what a finished step left behind.
type StepResult struct {
	Output []byte
	Usage  Usage
}

// Journal makes the intent and the outcome of steps durable.
type Journal interface {
	// Begin records that the step is about to run. When the journal already holds
	// its outcome, for the same request on the same conversation version, Begin
	// returns it instead and the step must not run.
	Begin(ctx context.Context, step Step) (result StepResult, done bool, err error)
	// Finish records the outcome. The step counts as done once it returns nil.
	Finish(ctx context.Context, step Step, result StepResult) error
}

// StepMismatchError says that a turn, run again on the same conversation
// version, made another request under the name of a journaled step: the handler
// is not deterministic between its steps.
type StepMismatchError struct {
	Step string
}

func (e *StepMismatchError) Error() string {
	return fmt.Sprintf("step %q: the journal holds another request under this name; "+
		"what a handler does between steps must follow from the task and the conversation alone", e.Step)
}

// ReservedSteps begins the names under which the journal keeps what is not a
// handler's.
const ReservedSteps = "millrace:"

// Step runs a call with an outcome that must not be produced, or paid for,
// twice. When an earlier run of this task has journaled the outcome, Step
// returns that and run is not called. Steps with one name are told apart by the
// order in which they are called.
//
// From the moment run is called until Step returns, a crash leaves the call
// ambiguous: it may have happened. The task's next run calls it again.
//
// Names that begin with [ReservedSteps] are refused, and so is, with
// [ErrInTransaction], a step of a turn that has opened a transaction.
func (t *Turn) Step(ctx context.Context, name string, request []byte, run func(context.Context) (StepResult, error)) ([]byte, error) {
	if strings.HasPrefix(name, ReservedSteps) {
		return nil, Permanent(fmt.Errorf("step %q: names that begin with %q are reserved", name, ReservedSteps))
	}
	if err := t.beginStep(); err != nil {
		return nil, fmt.Errorf("step %q: %w", name, err)
	}
	defer t.endStep()
	if t.journal == nil {
		result, err := run(ctx)
		if err != nil {
			return nil, fmt.Errorf("step %q: %w", name, err)
		}
		t.addUsage(result.Usage)
		return result.Output, nil
	}
	step := Step{
		Task:         t.task.Key(),
		Conversation: t.task.Conversation,
		Name:         t.stepName(name),
		RequestHash:  sha256.Sum256(request),
		BaseVersion:  t.conv.Version,
	}
	result, done, err := t.journal.Begin(ctx, step)
	if err != nil {
		return nil, fmt.Errorf("step %q: begin: %w", step.Name, err)
	}
	t.mu.Lock()
	t.journaled = true
	t.mu.Unlock()
	if !done {
		if result, err = run(ctx); err != nil {
			return nil, fmt.Errorf("step %q: %w", step.Name, err)
		}
		if err := t.journal.Finish(ctx, step, result); err != nil {
			return nil, fmt.Errorf("step %q: record outcome: %w", step.Name, err)
		}
	}
	t.addUsage(result.Usage)
	return result.Output, nil
}

// Journaled reports whether the turn has begun a step. Such a turn is not
// overtaken by another of its conversation while it waits for its next attempt.
func (t *Turn) Journaled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.journaled
}

func (t *Turn) addUsage(u Usage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.effects.Usage.Add(u)
}

func (t *Turn) stepName(name string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stepNames == nil {
		t.stepNames = make(map[string]int)
	}
	t.stepNames[name]++
	if n := t.stepNames[name]; n > 1 {
		return name + "#" + strconv.Itoa(n)
	}
	return name
}
