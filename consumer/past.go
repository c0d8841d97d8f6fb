package consumer

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

//go:embed lua/unmark.lua
var unmarkLua string

const (
	// pastFor is how long the past of a partition's tasks outlives the last word
	// about any of them. Pasts go with their tasks; this is for what is left over.
	pastFor = 7 * 24 * time.Hour
	// maxNotes bounds what waits to be written while Redis is out.
	maxNotes = 100_000
)

// past is what happened to a task at this and earlier owners of its partition.
// It lies in Redis, in fields f: and d: of one hash for each partition number,
// from the first failed attempt or counted death until the task is done. A task
// that succeeds at once has none, and nothing is asked or written for it. The
// next owner asks for the pasts of a partition along with the completions of its
// backlog, and only where there are any.
type past struct {
	failed int
	deaths deaths
	// cleared says that deaths were left out that a killer was given up for.
	cleared bool
}

// taskField names a run of a task in Redis. A redrive is another one, which
// begins without a past.
func taskField(key millrace.Key) string { return strconv.Itoa(key.Redrive) + ":" + key.ID }

type noteKey struct {
	partition int32
	task      string
}

// note is what is to be written about a task. Later words take the place of
// earlier ones.
type note struct {
	failed int
	deaths *deaths // replaces those that are counted
	unmark bool
	forget bool
}

// noteFailed has a failed attempt remembered. Nobody waits for it: what a worker
// that dies in the next millisecond has not written is an attempt more.
func (e *Engine) noteFailed(it *item) {
	if e.handover == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	it.recorded = true
	e.note(it, func(n *note) { n.failed = it.attempts })
}

// noteForget has all forgotten about a task that is done. Its caller holds the
// mutex.
func (e *Engine) noteForget(it *item) {
	it.recorded = false
	e.note(it, func(n *note) { *n = note{forget: true, unmark: n.unmark} })
}

// note adds to what is to be written about a task. Its caller holds the mutex.
func (e *Engine) note(it *item, change func(*note)) {
	if e.handover == nil {
		return
	}
	key := noteKey{it.part.tp.partition, taskField(it.task.Key())}
	n, known := e.notes[key]
	if !known && len(e.notes) >= maxNotes {
		e.metrics.handoverFailures.Inc()
		return
	}
	change(&n)
	e.notes[key] = n
	signal(e.ended)
}

// writeNotes writes what there is to write. It reports whether Redis took it;
// what it did not take is kept.
func (e *Engine) writeNotes(ctx context.Context) bool {
	e.writing.lock()
	defer e.writing.unlock()
	e.mu.Lock()
	notes := e.notes
	if len(notes) == 0 {
		e.mu.Unlock()
		return true
	}
	e.notes = make(map[noteKey]note)
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	err := e.handover.write(ctx, notes)
	if err == nil {
		return true
	}
	e.metrics.handoverFailures.Inc()
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, old := range notes {
		n, newer := e.notes[key]
		switch {
		case !newer:
			n = old
		case n.forget:
			n.unmark = n.unmark || old.unmark
		default:
			n.unmark = n.unmark || old.unmark
			n.failed = max(n.failed, old.failed)
			if n.deaths == nil {
				n.deaths = old.deaths
			}
		}
		e.notes[key] = n
	}
	return false
}

func (h *handover) write(ctx context.Context, notes map[noteKey]note) error {
	pipe := h.redis.Pipeline()
	unmark := make(map[int32][]any)
	for key, n := range notes {
		hash := h.pasts(key.partition)
		if n.unmark {
			if unmark[key.partition] == nil {
				unmark[key.partition] = []any{h.incarnation}
			}
			unmark[key.partition] = append(unmark[key.partition], key.task)
		}
		switch {
		case n.forget:
			pipe.HDel(ctx, hash, "f:"+key.task, "d:"+key.task)
			continue
		case n.failed > 0:
			pipe.HSet(ctx, hash, "f:"+key.task, n.failed)
			pipe.PExpire(ctx, hash, pastFor)
		}
		if n.deaths != nil {
			if *n.deaths == "" {
				pipe.HDel(ctx, hash, "d:"+key.task)
			} else {
				pipe.HSet(ctx, hash, "d:"+key.task, string(*n.deaths))
			}
		}
	}
	for partition, args := range unmark {
		// The text and not its digest: a pipeline cannot answer that the script is
		// unknown.
		for part := range slices.Chunk(args[1:], 1000) {
			pipe.Eval(ctx, unmarkLua, []string{h.marks(partition), h.pasts(partition)}, append([]any{args[0]}, part...)...)
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("write what happened to tasks: %w", err)
	}
	return nil
}

// recallBatch learns the pasts of what an earlier owner of its partition may
// have run: one round trip for the batch, and none where no task has a past.
// Nobody else holds the items yet.
func (e *Engine) recallBatch(ctx context.Context, batch []fetched) {
	if e.handover == nil {
		return
	}
	asked := make(map[noteKey]*item)
	repeats := make(map[*item]*item) // that a sender has put into the log again -> first
	e.mu.Lock()
	for _, f := range batch {
		if !f.part.withPast || f.part.revoked {
			continue
		}
		for _, it := range f.items {
			if !it.lookUp {
				continue
			}
			key := noteKey{f.part.tp.partition, taskField(it.task.Key())}
			if first := asked[key]; first != nil {
				repeats[it] = first
			} else {
				asked[key] = it
			}
		}
	}
	e.mu.Unlock()
	e.recall(ctx, asked)
	for it, first := range repeats {
		it.attempts, it.deaths, it.recorded = first.attempts, first.deaths, first.recorded
	}
}

// recallOne learns the past of an item in its slot.
func (e *Engine) recallOne(ctx context.Context, it *item) {
	it.recall = false
	if e.handover != nil {
		e.recall(ctx, map[noteKey]*item{{it.part.tp.partition, taskField(it.task.Key())}: it})
	}
}

func (e *Engine) recall(ctx context.Context, asked map[noteKey]*item) {
	if len(asked) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	found, err := e.handover.recall(ctx, asked)
	if err != nil {
		e.metrics.handoverFailures.Inc()
		if heldBack, ok := e.outages.allow(time.Now()); ok {
			e.log.Warn().Err(err).Int("tasks", len(asked)).Int("not_logged", heldBack).
				Msg("cannot ask Redis how often tasks have failed before; their attempts are counted anew")
		}
		return
	}
	for key, p := range found {
		it := asked[key]
		it.recorded = true
		it.attempts = max(it.attempts, p.failed)
		it.deaths = p.deaths
		if p.cleared {
			e.mu.Lock()
			e.note(it, func(n *note) { n.deaths = &p.deaths })
			e.mu.Unlock()
		}
	}
	for key, it := range asked {
		if _, ok := found[key]; !ok {
			it.deaths = ""
		}
	}
}

// recall returns the pasts that there are. Deaths that a killer has since been
// given up for are left out.
func (h *handover) recall(ctx context.Context, asked map[noteKey]*item) (map[noteKey]past, error) {
	byPartition := make(map[int32][]noteKey)
	for key := range asked {
		byPartition[key.partition] = append(byPartition[key.partition], key)
	}
	pipe := h.redis.Pipeline()
	answers := make(map[int32]*redis.SliceCmd)
	for partition, keys := range byPartition {
		fields := make([]string, 0, 2*len(keys))
		for _, key := range keys {
			fields = append(fields, "f:"+key.task, "d:"+key.task)
		}
		answers[partition] = pipe.HMGet(ctx, h.pasts(partition), fields...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read what happened to tasks: %w", err)
	}
	found := make(map[noteKey]past)
	var errs []error
	incarnations := make(map[string]bool)
	for partition, keys := range byPartition {
		values := answers[partition].Val()
		for i, key := range keys {
			var p past
			if s, ok := values[2*i].(string); ok {
				n, err := strconv.Atoi(s)
				if err != nil || n < 0 || n > millrace.MaxAttempts {
					errs = append(errs, fmt.Errorf("%s says %q of failed attempts of %s", h.pasts(partition), s, key.task))
				} else {
					p.failed = n
				}
			}
			if s, ok := values[2*i+1].(string); ok {
				p.deaths = deaths(s)
				for _, word := range strings.Fields(s) {
					incarnations[word[1:]] = true
				}
			}
			if p != (past{}) {
				found[key] = p
			}
		}
	}
	if err := h.leaveOutExplained(ctx, found, incarnations); err != nil {
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

// heads yields what may come next in a lane: one of these is the task that an
// earlier owner ran last. The engine's mutex is held.
func (l *lane) heads() iter.Seq[*item] {
	return func(yield func(*item) bool) {
		if l.pinned != nil && !yield(l.pinned) {
			return
		}
		for i := range l.waiting {
			if it := l.waiting[i].first; it != nil && !yield(it) {
				return
			}
		}
	}
}
