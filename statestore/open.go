package statestore

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"millrace"
)

// A worker that gains partitions opens all their conversations at once. Opens
// that come together share their round trips, as commits do.

//go:embed sql/open_conversations.sql
var openConversationsSQL string

//go:embed sql/open_messages.sql
var openMessagesSQL string

const (
	// openers is how many batches of opens are under way at once.
	openers = 4
	// maxOpens bounds the conversations of one batch, whose messages are in memory
	// together.
	maxOpens = 64
)

type pendingOpen struct {
	task *millrace.Task
	done chan openResult
}

type openResult struct {
	conv millrace.Conversation
	err  error
}

// Open returns the conversation that a task runs on and marks the task as
// running. Redis is asked first; what it does not have comes from PostgreSQL.
// An unkeyed task gets an empty conversation.
func (s *Store) Open(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	if task.Conversation == "" && !s.hot.hints {
		return millrace.Conversation{}, nil
	}
	p := &pendingOpen{task: task, done: make(chan openResult, 1)}
	if !s.opens.push(p) {
		return millrace.Conversation{}, millrace.Unavailable(errStopped)
	}
	select {
	case r := <-p.done:
		return r.conv, r.err
	case <-ctx.Done():
		return millrace.Conversation{}, millrace.Unavailable(fmt.Errorf("open conversation: %w", ctx.Err()))
	}
}

func (s *Store) openLoop(ctx context.Context) {
	for {
		batch := s.opens.take(maxOpens, func(*pendingOpen) bool { return true })
		if batch == nil {
			return
		}
		s.openBatch(ctx, batch)
	}
}

func (s *Store) openBatch(ctx context.Context, batch []*pendingOpen) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	tasks := make([]*millrace.Task, len(batch))
	for i, p := range batch {
		tasks[i] = p.task
	}
	found, spoilt, err := s.hot.open(ctx, tasks)
	if err != nil && !s.cfg.RunDegraded {
		for _, p := range batch {
			p.done <- openResult{err: millrace.UnavailableDependency(millrace.Redis, fmt.Errorf("open conversation: %w", err))}
		}
		return
	}
	var missing []string
	for i, p := range batch {
		switch {
		case p.task.Conversation == "":
			p.done <- openResult{}
		case err == nil && found[i] != nil:
			s.metrics.opened.WithLabelValues("redis").Inc()
			p.done <- openResult{conv: *found[i]}
		case !slices.Contains(missing, p.task.Conversation): // once: its messages would come as often as it is asked for
			missing = append(missing, p.task.Conversation)
		}
	}
	if len(missing) == 0 {
		return
	}
	// A copy that nobody can read says nothing of how new it is, so it does not stay
	// in doubt. Those of the same batch are seldom newer than PostgreSQL a moment
	// later; if one is, the next turn that opens it conflicts.
	loaded, loadErr := s.load(ctx, missing, spoilt)
	for i, p := range batch {
		if p.task.Conversation != "" && (err != nil || found[i] == nil) {
			p.done <- openResult{conv: loaded[p.task.Conversation], err: loadErr}
		}
	}
}

// Reload returns the conversation as PostgreSQL has it and makes Redis agree,
// whatever Redis holds. It is what a turn needs after a conflict.
func (s *Store) Reload(ctx context.Context, task *millrace.Task) (millrace.Conversation, error) {
	if task.Conversation == "" {
		return millrace.Conversation{}, nil
	}
	loaded, err := s.load(ctx, []string{task.Conversation}, true)
	return loaded[task.Conversation], err
}

// load reads conversations from PostgreSQL and writes their hot copies. One that
// is not there is new.
func (s *Store) load(ctx context.Context, ids []string, overwrite bool) (map[string]millrace.Conversation, error) {
	loaded, _, err := s.conversations(ctx, ids)
	if err != nil {
		return nil, err
	}
	copies := make([]millrace.Conversation, 0, len(ids))
	for _, id := range ids {
		conv, ok := loaded[id]
		if !ok {
			conv = millrace.Conversation{ID: id}
			loaded[id] = conv
		}
		copies = append(copies, conv)
	}
	s.metrics.opened.WithLabelValues("postgres").Add(float64(len(ids)))
	if err := s.hot.put(ctx, copies, overwrite); err != nil {
		s.metrics.hotFailures.Inc()
		s.log.Warn().Err(err).Msg("cannot write hot copies")
	}
	return loaded, nil
}

// Conversation returns a conversation with its newest messages as PostgreSQL
// has it, or [millrace.ErrNotFound], also for one that no turn has touched since it
// was erased.
func (s *Store) Conversation(ctx context.Context, id string) (millrace.Conversation, error) {
	found, gone, err := s.conversations(ctx, []string{id})
	if err != nil {
		return millrace.Conversation{}, err
	}
	conv, ok := found[id]
	if !ok || gone[id] {
		return millrace.Conversation{}, fmt.Errorf("conversation %q: %w", id, millrace.ErrNotFound)
	}
	return conv, nil
}

// conversations returns those of ids that PostgreSQL has, with their newest
// messages, and which of them are tombstones.
func (s *Store) conversations(ctx context.Context, ids []string) (found map[string]millrace.Conversation, gone map[string]bool, err error) {
	found = make(map[string]millrace.Conversation, len(ids))
	batch := &pgx.Batch{}
	batch.Queue(openConversationsSQL, ids).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				conv  millrace.Conversation
				state *string
				tomb  bool
			)
			if err := rows.Scan(&conv.ID, &conv.Version, &state, &conv.Length, &conv.Erased, &tomb); err != nil {
				return err
			}
			if tomb {
				if gone == nil {
					gone = make(map[string]bool)
				}
				gone[conv.ID] = true
			}
			if state != nil {
				conv.State = json.RawMessage(*state)
			}
			found[conv.ID] = conv
		}
		return rows.Err()
	})
	batch.Queue(openMessagesSQL, ids, millrace.TailLength).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var (
				id      string
				m       millrace.Message
				content []byte
			)
			if err := rows.Scan(&id, &m.Seq, &m.Role, &content, &m.TaskID, &m.At); err != nil {
				return err
			}
			m.Content, m.At = string(content), m.At.UTC()
			// The two statements may see two moments. History only grows, so cutting what
			// came later gives the first moment; if it has been erased in between, there is
			// no tail.
			if conv, ok := found[id]; ok && m.Seq <= conv.Last() {
				conv.Tail = append(conv.Tail, m)
				found[id] = conv
			}
		}
		return rows.Err()
	})
	if err := s.cfg.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return nil, nil, classify(fmt.Errorf("read conversations: %w", err))
	}
	return found, gone, nil
}

// open reads hot copies and leaves the hints that their tasks are running, in
// one round trip. A copy that is not there, or is not what a store has written for
// its conversation, is nil; spoilt says that there is one of the second kind.
func (h *hotCopies) open(ctx context.Context, tasks []*millrace.Task) (found []*millrace.Conversation, spoilt bool, err error) {
	pipe := h.redis.Pipeline()
	hashes := make([]*redis.SliceCmd, len(tasks))
	lists := make([]*redis.StringSliceCmd, len(tasks))
	for i, task := range tasks {
		if task.Conversation != "" {
			hash, list := h.keys(task.Conversation)
			hashes[i], lists[i] = pipe.HMGet(ctx, hash, "v", "d"), pipe.LRange(ctx, list, 0, -1)
		}
		if h.hints {
			hint, err := encodeHint(task, millrace.StatusRunning)
			if err != nil {
				return nil, false, err
			}
			pipe.Set(ctx, h.taskKey(task.ID), hint, h.ttl)
		}
	}
	commands, err := pipe.Exec(ctx)
	if err != nil {
		for _, c := range commands {
			// A key of another type is no outage, and no reason to hold the others.
			if err := c.Err(); err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
				return nil, false, fmt.Errorf("read hot copies: %w", err)
			}
		}
	}
	found = make([]*millrace.Conversation, len(tasks))
	for i := range tasks {
		if hashes[i] == nil {
			continue
		}
		if hashes[i].Err() != nil || lists[i].Err() != nil {
			spoilt = true
			continue
		}
		values := hashes[i].Val()
		version, ok1 := values[0].(string)
		doc, ok2 := values[1].(string)
		if !ok1 && !ok2 {
			continue
		}
		conv, err := decodeHot(tasks[i].Conversation, version, doc, lists[i].Val())
		if err != nil {
			spoilt = true
			continue
		}
		found[i] = &conv
	}
	return found, spoilt, nil
}
