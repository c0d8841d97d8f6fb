package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

var (
	//go:embed lua/put.lua
	putLua string
	//go:embed lua/advance.lua
	advanceLua string

	putScript     = redis.NewScript(putLua)
	advanceScript = redis.NewScript(advanceLua)
)

// maxHotTail bounds the bytes of messages in a hot copy, as Redis has them. What is cut is
// read from PostgreSQL when a turn asks for it.
const maxHotTail = 256 << 10

// hotCopies are the Redis copies of conversations: for each a hash with the
// fields v (version), d (id, lengths and state), b (bytes of the list) and, once it
// was erased, t (version of the tombstone), and a list of its newest messages. A
// turn adds to it what it has added to the conversation, however long that is.
//
// Nothing depends on them being right. A turn commits only on the version that
// PostgreSQL has; a copy that is not this conversation's, or that no store has
// written so, is read from PostgreSQL and replaced.
type hotCopies struct {
	redis  redis.UniversalClient
	prefix string
	ttl    time.Duration
	// hints says whether tasks leave word that they are queued or running.
	hints bool
}

// keys returns the hash and the list of a conversation. The braces keep them in
// one slot of a Redis cluster.
func (h *hotCopies) keys(conversation string) (hash, list string) {
	if strings.ContainsAny(conversation, "{}%") {
		conversation = url.PathEscape(conversation) // a brace of its own would end the tag
	}
	hash = h.prefix + "hot:{" + conversation + "}"
	return hash, hash + ":tail"
}

func (h *hotCopies) taskKey(id string) string { return h.prefix + "task:" + id }

// encodeHot returns the document of a conversation and its last messages, at
// most n of them and as many as may be kept.
func encodeHot(c *millrace.Conversation, n int) (doc []byte, messages []any) {
	size := 0
	for i := len(c.Tail) - 1; i >= max(0, len(c.Tail)-n); i-- {
		b := encodeHotMessage(&c.Tail[i])
		if size += len(b); size > maxHotTail {
			break
		}
		messages = append(messages, b)
	}
	slices.Reverse(messages)
	return encodeHotDoc(c), messages
}

// columnTime returns t as PostgreSQL gives it back.
func columnTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// errNotTheTail says of a list that it does not end where its conversation does.
var errNotTheTail = errors.New("the messages are not the newest ones")

func decodeHot(id, version, doc string, messages []string) (millrace.Conversation, error) {
	c, err := decodeHotDoc(id, version, doc)
	if err != nil {
		return millrace.Conversation{}, fmt.Errorf("decode hot copy: %w", err)
	}
	if len(messages) == 0 {
		return c, nil // evicted, or too large to be kept: PostgreSQL has them
	}
	c.Tail = make([]millrace.Message, 0, len(messages))
	for _, text := range messages {
		m, err := decodeHotMessage(text)
		if err != nil {
			return millrace.Conversation{}, fmt.Errorf("decode hot copy: message: %w", err)
		}
		if n := len(c.Tail); n > 0 && m.Seq != c.Tail[n-1].Seq+1 {
			c.Tail = c.Tail[:0] // a gap: what is before it is not the tail
		}
		c.Tail = append(c.Tail, m)
	}
	// One that ends later has most likely grown between the reading of the hash and of
	// the list: PostgreSQL has that turn as well.
	if n := len(c.Tail); n == 0 || c.Tail[n-1].Seq != c.Last() {
		return millrace.Conversation{}, fmt.Errorf("decode hot copy: %w", errNotTheTail)
	}
	return c, nil
}

// advanced is a conversation that a turn has moved on.
type advanced struct {
	base  int64 // the version that the turn ran on
	next  millrace.Conversation
	added int // how many messages the turn has appended
}

// advance moves hot copies on, in one round trip or two: those that are not at
// the version that the turn ran on are written whole.
func (h *hotCopies) advance(ctx context.Context, turns []advanced, finished ...string) error {
	if !h.hints {
		finished = nil
	}
	if len(turns) == 0 && len(finished) == 0 {
		return nil
	}
	moved := make([]*redis.Cmd, len(turns))
	err := withScripts(ctx, h.redis, func(pipe redis.Pipeliner, run runScript) {
		for i := range turns {
			t := &turns[i]
			doc, messages := encodeHot(&t.next, t.added)
			base := t.base
			if t.added > 0 && len(messages) == 0 {
				// The newest is too large to be kept, and what is before it is not the tail: there
				// is no copy that could be moved on.
				base = -1
			}
			hash, list := h.keys(t.next.ID)
			moved[i] = run(advanceScript, ctx, pipe, []string{hash, list}, append([]any{
				base, t.next.Version, doc, h.ttl.Milliseconds(), hotDocHead(&t.next), millrace.TailLength, maxHotTail,
			}, messages...)...)
		}
		for _, id := range finished {
			pipe.Del(ctx, h.taskKey(id))
		}
	})
	if err != nil {
		err = fmt.Errorf("move hot copies on: %w", err) // of some: a cluster's servers fail one by one
	}
	var whole []millrace.Conversation
	for i, cmd := range moved {
		if n, err := cmd.Int(); err == nil && n < 0 {
			whole = append(whole, turns[i].next)
		}
	}
	return errors.Join(err, h.put(ctx, whole, false))
}

// put writes hot copies whole, in one round trip. A copy that is newer than the
// given one stays, unless overwrite says that the given one is right.
func (h *hotCopies) put(ctx context.Context, convs []millrace.Conversation, overwrite bool) error {
	if len(convs) == 0 {
		return nil
	}
	mode := "newer"
	if overwrite {
		mode = "always"
	}
	err := withScripts(ctx, h.redis, func(pipe redis.Pipeliner, run runScript) {
		for i := range convs {
			doc, messages := encodeHot(&convs[i], millrace.TailLength)
			hash, list := h.keys(convs[i].ID)
			run(putScript, ctx, pipe, []string{hash, list}, append([]any{convs[i].Version, doc, h.ttl.Milliseconds(), hotDocHead(&convs[i]), mode}, messages...)...)
		}
	})
	if err != nil {
		return fmt.Errorf("write hot copies: %w", err)
	}
	return nil
}

type runScript func(s *redis.Script, ctx context.Context, on redis.Scripter, keys []string, args ...any) *redis.Cmd

// withScripts runs a pipeline that calls scripts by their hashes, and once more
// with the scripts themselves if Redis does not know them. Whatever is in the
// pipeline may thus run twice. Of a cluster's servers one may know the scripts and
// another may not, or not answer at all, so the first error does not tell.
func withScripts(ctx context.Context, client redis.UniversalClient, fill func(redis.Pipeliner, runScript)) error {
	for _, run := range []runScript{(*redis.Script).EvalSha, (*redis.Script).Eval} {
		pipe := client.Pipeline()
		fill(pipe, run)
		commands, err := pipe.Exec(ctx)
		unknown := func(c redis.Cmder) bool { return redis.HasErrorPrefix(c.Err(), "NOSCRIPT") }
		if err == nil || !slices.ContainsFunc(commands, unknown) {
			return err
		}
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
	if err := json.Unmarshal(b, &result); err != nil || result.TaskID != id {
		return millrace.TaskResult{}, millrace.ErrNotFound // it says nothing of this task
	}
	return result, nil
}
