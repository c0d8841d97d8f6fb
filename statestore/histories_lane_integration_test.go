//go:build integration

package statestore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"millrace"
)

// historyLane is one goroutine of a worker. It does one thing after another.
type historyLane struct {
	*history
	store   *Store
	letters *DeadLetterStore
	name    string
	rng     *rand.Rand
	made    int
}

func (l *historyLane) chance(percent int) bool { return l.rng.IntN(100) < percent }

func (l *historyLane) act(ctx context.Context) {
	switch n := l.rng.IntN(100); {
	case n < 8:
		l.cancel(ctx, fmt.Sprintf("task-%d", l.rng.IntN(historyTasks)))
	case n < 16:
		l.redrive(ctx)
	default:
		l.turn(ctx)
	}
}

// task draws a task: always of the same conversation, under its newest redrive or
// an older one. Every sixth has no conversation.
func (l *historyLane) task() millrace.Task {
	n := l.rng.IntN(historyTasks)
	task := millrace.Task{ID: fmt.Sprintf("task-%d", n), Type: "chat", Priority: millrace.Normal}
	if n%6 != 0 {
		task.Conversation = fmt.Sprintf("conv-%d", n%historyConversations)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if newest := l.redrives[task.ID]; newest > 0 {
		task.Redrive = newest - l.rng.IntN(2)
	}
	return task
}

// turn runs a task until it is done, or gives it up half-way.
func (l *historyLane) turn(ctx context.Context) {
	task := l.task()
	conv, ok := l.open(ctx, &task)
	for try := 0; ok && try < 5; try++ {
		a := l.attempt(task, conv)
		l.steps(ctx, a)
		outcome := l.commit(ctx, a)
		if outcome != millrace.Conflict || l.chance(30) {
			return
		}
		conv, ok = l.reload(ctx, &task)
	}
}

// open returns the conversation as the store has it, or as it was some time ago,
// which is what a worker has that does not know yet that it lost the partition.
func (l *historyLane) open(ctx context.Context, task *millrace.Task) (millrace.Conversation, bool) {
	if task.Conversation == "" {
		return millrace.Conversation{}, true
	}
	l.mu.Lock()
	old := l.stale[task.Conversation]
	l.mu.Unlock()
	if l.chance(25) && len(old) > 0 {
		return old[l.rng.IntN(len(old))], true
	}
	return l.read(ctx, "open", task, l.store.Open)
}

func (l *historyLane) reload(ctx context.Context, task *millrace.Task) (millrace.Conversation, bool) {
	return l.read(ctx, "reload", task, l.store.Reload)
}

func (l *historyLane) read(ctx context.Context, how string, task *millrace.Task,
	read func(context.Context, *millrace.Task) (millrace.Conversation, error),
) (millrace.Conversation, bool) {
	for range 20 {
		conv, err := read(ctx, task)
		if millrace.IsUnavailable(err) {
			continue
		}
		if err != nil {
			l.problem("%s %s: %v", how, task.Conversation, err)
			return conv, false
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.opened = append(l.opened, opened{conv, how})
		l.stale[conv.ID] = append(l.stale[conv.ID], conv)
		return conv, true
	}
	return millrace.Conversation{}, false
}

// attempt draws how a turn ends.
func (l *historyLane) attempt(task millrace.Task, conv millrace.Conversation) *attempt {
	l.made++
	a := &attempt{id: fmt.Sprintf("%s.%d", l.name, l.made)}
	now := time.Now().UTC().Truncate(time.Microsecond)
	a.completion = millrace.Completion{
		Task: task, Status: millrace.StatusCompleted, Base: conv, Attempts: 1, Error: a.id,
		Effects: millrace.Effects{Result: []byte(`"` + a.id + `"`)}, StartedAt: now, FinishedAt: now,
	}
	e := &a.completion.Effects
	failed := l.chance(15)
	if failed {
		a.completion.Status = millrace.StatusFailed
		a.completion.DeadLetter = &millrace.DeadLetter{Reason: millrace.ReasonPermanent, Detail: a.id}
	}
	if !failed && task.Conversation != "" {
		if l.chance(60) {
			e.State = []byte(`{"by":"` + a.id + `"}`)
		}
		for i := range l.rng.IntN(4) {
			e.Messages = append(e.Messages, millrace.Message{Role: millrace.RoleUser, Content: fmt.Sprintf("%s/%d", a.id, i)})
		}
	}
	if !failed {
		for range l.rng.IntN(4) {
			event := millrace.Event{Type: "said", Topic: "events", Data: []byte(a.id)}
			if l.chance(50) {
				event.Key = fmt.Sprintf("shared-%d", l.rng.IntN(2))
			}
			e.Events = append(e.Events, event)
		}
	}
	if len(e.Messages) > 0 && l.chance(6) {
		e.Messages[0].Role = "no\x00role" // which PostgreSQL refuses, with all that is in the batch
	}
	for i := 0; task.Conversation != "" && l.chance(12) && i < 3; i++ {
		other := l.task()
		also := millrace.Also{Task: other}
		if failed {
			also.DeadLetter = &millrace.DeadLetter{Reason: millrace.ReasonPermanent, Detail: a.id}
		}
		if other.Conversation == task.Conversation && other.ID != task.ID &&
			!slices.ContainsFunc(a.completion.Also, func(a millrace.Also) bool { return a.Task.ID == other.ID }) {
			a.completion.Also = append(a.completion.Also, also)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attempts = append(l.attempts, a)
	return a
}

// steps runs a step or two of an attempt through the journal.
func (l *historyLane) steps(ctx context.Context, a *attempt) {
	for i := range l.rng.IntN(3) {
		step := millrace.Step{Task: a.key(), Name: fmt.Sprintf("step-%d", i), BaseVersion: a.completion.Base.Version}
		step.RequestHash = sha256.Sum256([]byte(step.Name))
		result, done, err := l.store.Begin(ctx, step)
		if err == nil && !done {
			output := fmt.Sprintf("%s/%s", a.id, step.Name)
			l.mu.Lock()
			l.finished[fmt.Sprint(step.Task, step.BaseVersion, output)] = true
			l.mu.Unlock()
			err = l.store.Finish(ctx, step, millrace.StepResult{Output: []byte(output)})
		}
		l.mu.Lock()
		if err == nil && done {
			l.replayed = append(l.replayed, fmt.Sprint(step.Task, step.BaseVersion, string(result.Output)))
		}
		l.begun[a.key()] = time.Now()
		l.mu.Unlock()
		if err != nil && !millrace.IsUnavailable(err) {
			l.problem("step of %v: %v", a.key(), err)
		}
	}
}

// commit hands an attempt in, and again while its outcome is unknown.
func (l *historyLane) commit(ctx context.Context, a *attempt) (outcome millrace.Outcome) {
	for try := range 4 {
		call := commitCall{began: time.Now()}
		patience := time.Minute
		if try == 0 && l.chance(15) {
			patience = time.Duration(l.rng.IntN(15)) * time.Millisecond
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		call.outcome, call.err = l.store.Commit(limited, a.completion)
		cancel()
		call.ended = time.Now()
		l.mu.Lock()
		a.calls = append(a.calls, call)
		l.mu.Unlock()
		if !millrace.IsUnavailable(call.err) {
			return call.outcome
		}
	}
	return 0
}

func (l *historyLane) cancel(ctx context.Context, id string) {
	result, err := l.store.Cancel(ctx, id, true)
	switch {
	case err == nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cancels = append(l.cancels, toldCancelled{id, result.Status})
	case !millrace.IsUnavailable(err) && !errors.Is(err, millrace.ErrNotFound):
		l.problem("cancel %s: %v", id, err)
	}
}

// redrive puts dead letters back, which gives their tasks a next number.
func (l *historyLane) redrive(ctx context.Context) {
	_, err := l.letters.Redrive(ctx, DeadLetterFilter{}, func(_ context.Context, letters []DeadLetter) []error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := range letters {
			l.redrives[letters[i].TaskID] = max(l.redrives[letters[i].TaskID], letters[i].Redrive+1)
		}
		return make([]error, len(letters))
	})
	if err != nil && !millrace.IsUnavailable(err) {
		l.problem("redrive: %v", err)
	}
}
