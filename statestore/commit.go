package statestore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"millrace"
	"millrace/outbox"
)

// pendingCommit is a completion on its way into a transaction.
type pendingCommit struct {
	completion millrace.Completion
	done       chan commitResult
	// tokens are the commit tokens of all transactions that tried to commit this
	// completion: a row that carries one of them is ours.
	tokens []uuid.UUID
}

type commitResult struct {
	outcome millrace.Outcome
	err     error
}

// Commit makes a completion and its effects durable, all or nothing, and says
// what became of it. Concurrent calls share a transaction.
//
// An error that is [millrace.IsUnavailable] leaves the outcome open: it may have
// committed. Committing the same completion again settles it. Any other error
// says that PostgreSQL refuses the completion for what it holds.
func (s *Store) Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error) {
	if s.cfg.DropResults && c.Status == millrace.StatusCompleted && c.Effects.Empty() && c.Effects.Usage == (millrace.Usage{}) && len(c.Also) == 0 {
		return millrace.Committed, nil
	}
	p := &pendingCommit{completion: c, done: make(chan commitResult, 1)}
	if !s.commits.push(p) {
		return 0, millrace.Unavailable(errStopped)
	}
	select {
	case r := <-p.done:
		return r.outcome, r.err
	case <-ctx.Done():
		return 0, millrace.Unavailable(fmt.Errorf("commit: %w", ctx.Err()))
	}
}

func (s *Store) commitLoop(ctx context.Context) {
	for {
		batch := s.commits.take(s.cfg.BatchSize, newAdmission())
		if batch == nil {
			return
		}
		s.commitBatch(ctx, batch)
	}
}

// newAdmission returns what decides whether a completion fits into a new
// transaction. One holds each conversation and each task at most once, because
// the second would not see what the first has done, and is bounded in bytes.
func newAdmission() func(*pendingCommit) bool {
	conversations := make(map[string]struct{})
	tasks := make(map[millrace.Key]struct{})
	size, full := 0, false
	return func(p *pendingCommit) bool {
		if size += sizeOf(&p.completion); size > maxBatchBytes && len(tasks) > 0 {
			full = true // and nobody overtakes the one that did not fit
		}
		if full {
			return false
		}
		task := &p.completion.Task
		if _, taken := tasks[task.Key()]; taken {
			return false
		}
		also := p.completion.Also
		for i := range also {
			if _, taken := tasks[also[i].Task.Key()]; taken {
				return false
			}
		}
		if task.Conversation != "" {
			if _, taken := conversations[task.Conversation]; taken {
				return false
			}
			conversations[task.Conversation] = struct{}{}
		}
		tasks[task.Key()] = struct{}{}
		for i := range also {
			tasks[also[i].Task.Key()] = struct{}{}
		}
		return true
	}
}

// PostgreSQL takes no message of 1 GiB or more: it drops the connection, which
// looks like an outage for ever. So what one transaction carries is bounded, and
// a turn that is far too large alone is refused.
const (
	maxBatchBytes      = 32 << 20
	maxCompletionBytes = 256 << 20
)

// sizeOf returns about how many bytes a completion has on its way to PostgreSQL.
func sizeOf(c *millrace.Completion) int {
	n := len(c.Effects.State) + 2*len(c.Effects.Result)*(1+len(c.Also)) // in the completion and in the event
	for i := range c.Effects.Messages {
		n += len(c.Effects.Messages[i].Content)
	}
	for i := range c.Effects.Events {
		n += len(c.Effects.Events[i].Data)
	}
	n += sizeOfDeadLetter(c.DeadLetter)
	for i := range c.Also {
		n += sizeOfDeadLetter(c.Also[i].DeadLetter)
	}
	return n
}

func sizeOfDeadLetter(d *millrace.DeadLetter) int {
	if d == nil {
		return 0
	}
	return 2*len(d.Record.Value) + len(d.Stack) // in the list and in the event
}

// commitBatch commits a batch and tells every turn its outcome. A batch that
// PostgreSQL refuses for what it holds is split, so that only the turn at fault
// is told.
func (s *Store) commitBatch(ctx context.Context, batch []*pendingCommit) {
	began := time.Now()
	outcomes, err := s.commitRetrying(ctx, batch)
	if err != nil && !millrace.IsUnavailable(err) && len(batch) > 1 {
		for half := range slices.Chunk(batch, (len(batch)+1)/2) {
			s.commitBatch(ctx, half)
		}
		return
	}
	if err != nil {
		for _, p := range batch {
			p.done <- commitResult{err: err}
		}
		return
	}
	s.metrics.batch.Observe(float64(len(batch)))
	s.metrics.duration.Observe(time.Since(began).Seconds())
	s.afterCommit(ctx, batch, outcomes)
	for i, p := range batch {
		s.metrics.outcomes.WithLabelValues(outcomes[i].String()).Inc()
		p.done <- commitResult{outcome: outcomes[i]}
	}
}

// commitRetrying commits, through outages and lost connections, for at most
// CommitTimeout. Trying again after a connection was lost in the middle is safe:
// if the first transaction did commit, the second finds its completions by
// their token and writes nothing.
func (s *Store) commitRetrying(ctx context.Context, batch []*pendingCommit) ([]millrace.Outcome, error) {
	tries := 0
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 20*time.Millisecond, time.Second
	return backoff.Retry(ctx, func() ([]millrace.Outcome, error) {
		if tries++; tries > 1 {
			s.metrics.retries.Inc()
		}
		outcomes, err := s.commitOnce(ctx, batch)
		if err != nil {
			err = classify(err)
			if !millrace.IsUnavailable(err) {
				return nil, backoff.Permanent(err)
			}
			s.log.Warn().Err(err).Int("turns", len(batch)).Msg("commit failed, trying again")
		}
		return outcomes, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(s.cfg.CommitTimeout))
}

// afterCommit wakes the relay and writes the hot copies of what was committed.
// Both only save time, so nothing that goes wrong here concerns the turn.
func (s *Store) afterCommit(ctx context.Context, batch []*pendingCommit, outcomes []millrace.Outcome) {
	var (
		shards   []int
		turns    []advanced
		finished = make([]string, 0, len(batch))
	)
	for i, p := range batch {
		c := &p.completion
		if outcomes[i] == millrace.Conflict {
			continue
		}
		finished = append(finished, c.Task.ID)
		for j := range c.Also {
			if outcomes[i] == millrace.Committed {
				finished = append(finished, c.Also[j].Task.ID)
			}
		}
		if outcomes[i] != millrace.Committed {
			continue
		}
		shards = addShard(shards, c.EventKey())
		for j := range c.Effects.Events {
			if key := c.Effects.Events[j].Key; key != "" {
				shards = addShard(shards, key)
			}
		}
		if c.Task.Conversation != "" && c.Effects.Touches() {
			turns = append(turns, advanced{
				base: c.Base.Version, next: c.Base.After(&c.Task, &c.Effects, c.FinishedAt), added: len(c.Effects.Messages),
			})
		}
	}
	s.cfg.Published(shards...)
	s.advanceHot(ctx, turns, finished...)
}

func (s *Store) advanceHot(ctx context.Context, turns []advanced, finished ...string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.hot.advance(ctx, turns, finished...); err != nil {
		s.metrics.hotFailures.Inc()
		s.log.Warn().Err(err).Msg("cannot write hot copies")
	}
}

func addShard(shards []int, key string) []int {
	if shard := outbox.Shard(key); !slices.Contains(shards, shard) {
		shards = append(shards, shard)
	}
	return shards
}

// cleanLabel cleans what comes from a record's headers. The task of a record that
// could not be decoded carries them as they were, and its dead letter must not
// fail on what made it one.
func cleanLabel(s string) string { return cleanText(s, maxLabelBytes) }

// cleanText makes s fit a text column: valid UTF-8 without NUL, bounded.
func cleanText(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
