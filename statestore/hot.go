package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

//go:embed lua/put.lua
var putLua string

var putScript = redis.NewScript(putLua)

// maxHotTail bounds the bytes of messages that a hot copy holds. What is cut is
// read from PostgreSQL when a turn asks for it.
const maxHotTail = 256 << 10

// hotCopies are the Redis copies of conversations: a hash per conversation with
// the fields v (version) and d (the rest).
type hotCopies struct {
	redis  redis.UniversalClient
	prefix string
	ttl    time.Duration
	// hints says whether tasks leave word that they are queued or running.
	hints bool
}

func (h *hotCopies) key(conversation string) string { return h.prefix + "conv:" + conversation }

func (h *hotCopies) taskKey(id string) string { return h.prefix + "task:" + id }

// hotDoc is everything of a conversation but its id and version. Content is
// bytes here, because JSON strings cannot carry what is not UTF-8. State is a
// string, because embedded JSON would come back in another spelling than
// PostgreSQL gives, and a step whose request quotes it would seem another one.
type hotDoc struct {
	State  *string      `json:"s,omitempty"`
	Length int64        `json:"l"`
	Tail   []hotMessage `json:"t,omitempty"`
}

type hotMessage struct {
	Role    string    `json:"r"`
	Content []byte    `json:"c"`
	TaskID  string    `json:"i"`
	At      time.Time `json:"a"`
}

func encodeHot(c *millrace.Conversation) ([]byte, error) {
	doc := hotDoc{State: jsonColumn(c.State), Length: c.Length}
	size, from := 0, len(c.Tail)
	for from > 0 && size+len(c.Tail[from-1].Content) <= maxHotTail {
		from--
		size += len(c.Tail[from].Content)
	}
	for _, m := range c.Tail[from:] {
		doc.Tail = append(doc.Tail, hotMessage{Role: m.Role, Content: []byte(m.Content), TaskID: m.TaskID, At: columnTime(m.At)})
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode hot copy: %w", err)
	}
	return b, nil
}

// columnTime returns t as PostgreSQL gives it back.
func columnTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func decodeHot(id, version, body string) (millrace.Conversation, error) {
	v, err := strconv.ParseInt(version, 10, 64)
	if err != nil {
		return millrace.Conversation{}, fmt.Errorf("decode hot copy: version: %w", err)
	}
	var doc hotDoc
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		return millrace.Conversation{}, fmt.Errorf("decode hot copy: %w", err)
	}
	c := millrace.Conversation{ID: id, Version: v, Length: doc.Length}
	if doc.State != nil {
		c.State = json.RawMessage(*doc.State)
	}
	first := doc.Length - int64(len(doc.Tail)) + 1
	for i, m := range doc.Tail {
		c.Tail = append(c.Tail, millrace.Message{
			Seq: first + int64(i), Role: m.Role, Content: string(m.Content), TaskID: m.TaskID, At: m.At,
		})
	}
	return c, nil
}

// put writes hot copies in one round trip. A copy that is newer than the given
// one stays, unless overwrite says that the given one is right.
func (h *hotCopies) put(ctx context.Context, convs []millrace.Conversation, overwrite bool, finished ...string) error {
	if !h.hints {
		finished = nil
	}
	if len(convs) == 0 && len(finished) == 0 {
		return nil
	}
	mode := "newer"
	if overwrite {
		mode = "always"
	}
	write := func(run func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd) error {
		pipe := h.redis.Pipeline()
		for i := range convs {
			body, err := encodeHot(&convs[i])
			if err != nil {
				return err
			}
			run(ctx, pipe, []string{h.key(convs[i].ID)}, convs[i].Version, body, h.ttl.Milliseconds(), mode)
		}
		for _, id := range finished {
			pipe.Del(ctx, h.taskKey(id))
		}
		_, err := pipe.Exec(ctx)
		return err
	}
	err := write(putScript.EvalSha)
	if redis.HasErrorPrefix(err, "NOSCRIPT") {
		err = write(putScript.Eval)
	}
	if err != nil {
		return fmt.Errorf("write hot copies: %w", err)
	}
	return nil
}

func encodeHint(task *millrace.Task, status millrace.Status) ([]byte, error) {
	b, err := json.Marshal(millrace.TaskResult{TaskID: task.ID, ConversationID: task.Conversation, Status: status})
	if err != nil {
		return nil, fmt.Errorf("encode task hint: %w", err)
	}
	return b, nil
}

// queued leaves hints that tasks are waiting. A worker that has already begun
// one is not overruled.
func (h *hotCopies) queued(ctx context.Context, tasks []millrace.Task) error {
	if !h.hints {
		return nil
	}
	pipe := h.redis.Pipeline()
	for i := range tasks {
		hint, err := encodeHint(&tasks[i], millrace.StatusQueued)
		if err != nil {
			return err
		}
		pipe.SetNX(ctx, h.taskKey(tasks[i].ID), hint, h.ttl)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("announce queued tasks: %w", err)
	}
	return nil
}

// hint returns what was left about a task that has not finished.
func (h *hotCopies) hint(ctx context.Context, id string) (millrace.TaskResult, error) {
	var result millrace.TaskResult
	b, err := h.redis.Get(ctx, h.taskKey(id)).Bytes()
	if errors.Is(err, redis.Nil) {
		return result, millrace.ErrNotFound
	}
	if err != nil {
		return result, fmt.Errorf("read task hint: %w", err)
	}
	if err := json.Unmarshal(b, &result); err != nil {
		return result, millrace.ErrNotFound
	}
	return result, nil
}
