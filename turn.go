package millrace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"
)

// HistoryReader reads committed history that a snapshot does not carry.
type HistoryReader interface {
	// History returns the last n messages of a conversation up to and including
	// the sequence number last, oldest first.
	History(ctx context.Context, conversation string, last int64, n int) ([]Message, error)
}

// TurnConfig is what a turn is made of. Tests of handlers make their own.
type TurnConfig struct {
	Task         Task
	Conversation Conversation
	// Coalesced are the further tasks that the turn is to answer.
	Coalesced []*Task
	// Attempt counts from 1. 0 means 1.
	Attempt int
	// History reads what Conversation.Tail lacks. Nil: the tail is all there is.
	History HistoryReader
	// Journal keeps the outcome of steps. Nil: steps run anew at every attempt.
	Journal Journal
	// Dependencies is told which dependencies have answered. Nil: nobody is.
	Dependencies Dependencies
	// Transactions opens the transaction that a handler asks for. Nil: it gets none.
	Transactions Transactions
}

// Dependencies keeps account of what turns call.
type Dependencies interface {
	// Reached says that a dependency has answered a turn of a task.
	Reached(task *Task, dependency string)
}

// Turn is one run of a handler for a task against its conversation. It collects
// effects; nothing leaves it before the turn commits. Its methods may be called
// from several goroutines.
type Turn struct {
	task    Task
	others  []*Task
	conv    Conversation
	attempt int
	history HistoryReader
	journal Journal
	deps    Dependencies
	own     ownTransaction

	mu        sync.Mutex
	effects   Effects
	stepNames map[string]int
	journaled bool
	outage    error
	// stepping counts the steps that run. None begins once stepsClosed.
	stepping    int
	stepsClosed bool
}

// NewTurn returns a turn that has collected nothing yet.
func NewTurn(cfg TurnConfig) *Turn {
	return &Turn{
		task:    cfg.Task,
		others:  cfg.Coalesced,
		conv:    cfg.Conversation,
		attempt: max(cfg.Attempt, 1),
		history: cfg.History,
		journal: cfg.Journal,
		deps:    cfg.Dependencies,
		own:     ownTransaction{begin: cfg.Transactions},
	}
}

// Reached says that a dependency has answered this turn, whatever its answer was:
// it is not out. See [UnavailableDependency].
func (t *Turn) Reached(dependency string) {
	t.mu.Lock()
	if DependencyOf(t.outage) == dependency {
		t.outage = nil
	}
	t.mu.Unlock()
	if t.deps != nil {
		t.deps.Reached(&t.task, dependency)
	}
}

// Unreached keeps an outage ([UnavailableDependency]) that the turn has run into.
// It is for calls that are made on behalf of a handler in another process, which
// can only say that it has failed.
func (t *Turn) Unreached(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outage = err
}

// Outage returns what [Turn.Unreached] was told last, if the dependency has not
// answered since.
func (t *Turn) Outage() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.outage
}

// Task returns the task. Its payload and attributes are shared: do not change
// them.
func (t *Turn) Task() *Task { return &t.task }

// Coalesced returns the further tasks that this turn answers, in order: those
// that waited behind its own with [BusyCoalesce]. They get the turn's result. Do
// not change them.
func (t *Turn) Coalesced() []*Task { return t.others }

// Attempt returns which try this is, from 1.
func (t *Turn) Attempt() int { return t.attempt }

// Decode unmarshals the task's JSON payload. Input that does not fit v is a
// permanent error: no retry makes it fit.
func (t *Turn) Decode(v any) error {
	if err := json.Unmarshal(t.task.Payload, v); err != nil {
		return Permanent(fmt.Errorf("decode payload: %w", err))
	}
	return nil
}

// Version returns the conversation version that the turn runs on.
func (t *Turn) Version() int64 { return t.conv.Version }

// State returns the conversation's state as JSON: what this turn has set, or
// else what the last committed turn left, or nil.
func (t *Turn) State() json.RawMessage {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.effects.State != nil {
		return t.effects.State
	}
	return t.conv.State
}

// DecodeState unmarshals the conversation's state into v and leaves v alone
// when there is none yet.
func (t *Turn) DecodeState(v any) error {
	state := t.State()
	if state == nil {
		return nil
	}
	if err := json.Unmarshal(state, v); err != nil {
		return fmt.Errorf("decode state: %w", err)
	}
	return nil
}

// ErrUnkeyed is returned when an unkeyed task asks for what only a conversation
// has.
var ErrUnkeyed = errors.New("the task has no conversation")

// SetState replaces the conversation's state with v, encoded as JSON.
func (t *Turn) SetState(v any) error {
	if t.task.Conversation == "" {
		return Permanent(fmt.Errorf("set state: %w", ErrUnkeyed))
	}
	b, err := encodeJSON(v)
	if err != nil {
		return Permanent(fmt.Errorf("set state: %w", err))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.effects.State = b
	return nil
}

// History returns the last n messages of the conversation, oldest first, those
// that this turn has appended included.
func (t *Turn) History(ctx context.Context, n int) ([]Message, error) {
	if n <= 0 {
		return nil, nil
	}
	t.mu.Lock()
	own := slices.Clone(t.effects.Messages)
	t.mu.Unlock()

	want := min(int64(max(n-len(own), 0)), t.conv.Length)
	committed := t.conv.Tail
	if want > int64(len(committed)) && t.history != nil {
		var err error
		committed, err = t.history.History(ctx, t.conv.ID, t.conv.Last(), int(want))
		if err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
	}
	all := append(slices.Clone(committed), own...)
	return all[max(len(all)-n, 0):], nil
}

// Append adds messages to the conversation's history.
func (t *Turn) Append(messages ...Message) error {
	if t.task.Conversation == "" {
		return Permanent(fmt.Errorf("append messages: %w", ErrUnkeyed))
	}
	for _, m := range messages {
		if err := validText("role", m.Role, 64); err != nil || m.Role == "" {
			return Permanent(fmt.Errorf("append message: role %q: want 1 to 64 characters", m.Role))
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.effects.Messages = append(t.effects.Messages, messages...)
	return nil
}

// Emit publishes an event once the turn has committed.
func (t *Turn) Emit(e Event) error {
	if err := e.validate(); err != nil {
		return Permanent(fmt.Errorf("emit event: %w", err))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.effects.Events = append(t.effects.Events, e)
	return nil
}

// Result sets what the task's sender gets as the outcome, encoded as JSON. The
// last call counts.
func (t *Turn) Result(v any) error {
	b, err := encodeJSON(v)
	if err != nil {
		return Permanent(fmt.Errorf("set result: %w", err))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.effects.Result = b
	return nil
}

// Effects returns what the turn has collected so far.
func (t *Turn) Effects() Effects {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.effects
	e.Messages = slices.Clone(e.Messages)
	e.Events = slices.Clone(e.Events)
	return e
}

// encodeJSON returns v as JSON text that PostgreSQL takes: encoding/json lets
// invalid UTF-8 through where a value brings its own encoding.
func encodeJSON(v any) (json.RawMessage, error) {
	b, raw := v.(json.RawMessage)
	if !raw {
		var err error
		if b, err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
	}
	if !utf8.Valid(b) || !json.Valid(b) {
		return nil, errors.New("not valid JSON")
	}
	return b, nil
}

// reservedTopic is where the relay keeps what it has published.
const reservedTopic = "relay.markers"

func (e *Event) validate() error {
	if e.Type == "" {
		return errors.New("type: missing")
	}
	if err := validText("type", e.Type, MaxTypeBytes); err != nil {
		return err
	}
	if err := validText("key", e.Key, MaxConversationBytes); err != nil {
		return err
	}
	if len(e.Data) > MaxEventBytes {
		return fmt.Errorf("data: %d bytes, at most %d", len(e.Data), MaxEventBytes)
	}
	if e.Topic == reservedTopic {
		return fmt.Errorf("topic %q: it is the relay's own", e.Topic)
	}
	if !validTopic(e.Topic) {
		return fmt.Errorf("topic %q: want at most 200 letters, digits, dots, dashes and underscores", e.Topic)
	}
	return nil
}

func validTopic(topic string) bool {
	if len(topic) > 200 {
		return false
	}
	for _, r := range topic {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
		default:
			return false
		}
	}
	return true
}
