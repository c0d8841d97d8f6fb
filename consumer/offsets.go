package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	commitInterval = 500 * time.Millisecond
	// commitTimeout bounds how long a commit holds up the loss of partitions or the
	// end of the worker when the coordinator does not answer.
	commitTimeout = 3 * time.Second
)

// commitLoop commits the lowest unfinished offset of every partition as it
// moves.
func (e *Engine) commitLoop(ctx context.Context, cl *kgo.Client) {
	ticker := time.NewTicker(commitInterval)
	defer ticker.Stop()
	defer e.pulses.commit.end()
	for {
		e.pulses.commit.beat()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := e.commitOffsets(ctx, cl)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, kerr.RebalanceInProgress):
			// The next tick, or the revocation, commits them.
		default:
			e.log.Warn().Err(err).Msg("cannot commit offsets, will try again")
		}
	}
}

func (e *Engine) commitOffsets(ctx context.Context, cl *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	e.commitMu.lock()
	defer e.commitMu.unlock()
	e.mu.Lock()
	parts := make([]*partition, 0, len(e.parts))
	for _, p := range e.parts {
		if !p.revoked {
			parts = append(parts, p)
		}
	}
	e.mu.Unlock()
	return e.commitParts(ctx, cl, parts)
}

// offsetCommit is what is committed of a partition.
type offsetCommit struct {
	offset   int64
	metadata string
}

// commitParts commits those of parts that have moved. It is called with
// commitMu held.
func (e *Engine) commitParts(ctx context.Context, cl *kgo.Client, parts []*partition) error {
	commits := make(map[topicPartition]offsetCommit)
	for _, p := range parts {
		// Offset and metadata are of one moment: apart, they could say that an offset
		// is done which is not. The mutex is given back between partitions, since turns
		// wait for it.
		e.mu.Lock()
		known, next, finished := p.tracker.known, p.tracker.next, p.tracker.finished()
		e.mu.Unlock()
		if !known {
			continue
		}
		c := offsetCommit{next, encodeMetadata(next, finished)}
		if c.offset == p.committed && c.metadata == p.metadata {
			continue
		}
		commits[p.tp] = c
	}
	if len(commits) == 0 {
		return nil
	}
	if err := e.sendCommits(ctx, cl, commits); err != nil {
		return fmt.Errorf("commit offsets: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range parts {
		if c, ok := commits[p.tp]; ok {
			p.committed, p.metadata = c.offset, c.metadata
		}
	}
	return nil
}

// sendCommits has the group's coordinator take commits.
func sendCommits(ctx context.Context, cl *kgo.Client, commits map[topicPartition]offsetCommit) error {
	offsets := make(map[string]map[int32]kgo.EpochOffset)
	for tp, c := range commits {
		if offsets[tp.topic] == nil {
			offsets[tp.topic] = make(map[int32]kgo.EpochOffset)
		}
		offsets[tp.topic][tp.partition] = kgo.EpochOffset{Epoch: -1, Offset: c.offset}
	}
	// The client would write the member id as metadata.
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for _, t := range req.Topics {
			for i := range t.Partitions {
				p := &t.Partitions[i]
				metadata := commits[topicPartition{t.Topic, p.Partition}].metadata
				p.Metadata = &metadata
			}
		}
		return nil
	})
	var failed error
	cl.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			failed = err
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					failed = fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
				}
			}
		}
	})
	return failed
}
