package ingest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// Producer is the part of a [kgo.Client] that the server writes with.
type Producer interface {
	// Produce sends r and calls promise once its fate is known.
	Produce(ctx context.Context, r *kgo.Record, promise func(*kgo.Record, error))
	// Flush returns when all that was produced has met its fate.
	Flush(ctx context.Context) error
}

// ProducerOptions returns the options that a client for [Config.Producer]
// needs, besides brokers and security: acks=all and idempotence, so that an
// acknowledgement means stored, once and in order; Kafka's own partitioner, so
// that other producers place a conversation on the same partition; records of
// up to 2 MiB; a bounded buffer; no linger, as batches form by themselves under
// load; and a delivery timeout below the default [Config.ProduceTimeout], so
// that an outage is reported by the client, which knows more than a timer.
func ProducerOptions() []kgo.Opt {
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()), // idempotence is on unless disabled
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.ProducerBatchMaxBytes(maxRecordBytes),
		kgo.ProducerLinger(0),
		kgo.RecordDeliveryTimeout(9 * time.Second),
		kgo.MaxBufferedRecords(100_000),
		kgo.MaxBufferedBytes(256 << 20),
	}
}

// produce hands the task to the producer, which calls done once its fate is
// known, be it within this call. Done must not block.
func (s *Server) produce(ctx context.Context, task *millrace.Task, done func(error)) error {
	r, err := task.Record()
	if err != nil {
		return err
	}
	rec := &kgo.Record{
		Topic: s.cfg.topic(task.Priority), Key: r.Key, Value: r.Value, Timestamp: r.Timestamp,
		Headers: make([]kgo.RecordHeader, len(r.Headers)),
	}
	for i, h := range r.Headers {
		rec.Headers[i] = kgo.RecordHeader{Key: h.Key, Value: h.Value}
	}

	// A request that ends must not cancel its record: the client fails whole
	// batches by the context of their first record, those of other requests
	// included.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ProduceTimeout)
	start := time.Now()
	s.cfg.Producer.Produce(ctx, rec, func(_ *kgo.Record, err error) {
		cancel()
		s.metrics.produceSeconds.Observe(time.Since(start).Seconds())
		done(err)
	})
	return nil
}

// ackContext bounds the wait for acknowledgements. It leaves the producer some
// time over to report a timeout of its own, and goes on when the sender goes
// away: its task is on its way, and is counted and announced all the same.
func (s *Server) ackContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), s.cfg.ProduceTimeout+time.Second,
		fmt.Errorf("no acknowledgement within %s", s.cfg.ProduceTimeout))
}

// await returns the outcome of a produced task, or that there is none in time.
func await(ctx context.Context, acked <-chan error) error {
	select {
	case err := <-acked:
		return err
	default:
	}
	select {
	case err := <-acked:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for acknowledgement: %w", context.Cause(ctx))
	}
}

func tooLargeForKafka(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge)
}

// produceProblem says to the sender why its task was not accepted.
func (s *Server) produceProblem(task *millrace.Task, err error) *Problem {
	if tooLargeForKafka(err) {
		return payloadTooLarge.at(ProblemError{
			Pointer: pointer(fieldPayload),
			Detail:  "Kafka takes no record of this size; the topic's max.message.bytes is lower than ingest's limit",
		})
	}
	s.failures.Warn().Err(err).Str("task", task.ID).Str("topic", s.cfg.topic(task.Priority)).Msg("produce task")
	detail := "no acknowledgement from all in-sync replicas"
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		detail = fmt.Sprintf("topic %s does not exist; create it with `millrace topics`", s.cfg.topic(task.Priority))
	case errors.Is(err, kerr.NotEnoughReplicas), errors.Is(err, kerr.NotEnoughReplicasAfterAppend):
		detail = "too few replicas are in sync"
	}
	return kafkaUnavailable.problem("%s", detail).retry(2 * time.Second)
}

// gate counts the requests that may produce, so that a stop can wait for them.
type gate struct {
	mu     sync.Mutex
	open   int
	closed bool
	empty  chan struct{} // closed once the gate is closed and nobody is inside
}

func newGate() *gate { return &gate{empty: make(chan struct{})} }

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.open++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open--; g.open == 0 && g.closed {
		close(g.empty)
	}
}

// close lets nobody in any more.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.closed = true
	if g.open == 0 {
		close(g.empty)
	}
}
