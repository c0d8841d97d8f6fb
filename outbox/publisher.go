package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

//go:embed sql/read.sql
var readSQL string

//go:embed sql/delete.sql
var deleteSQL string

//go:embed sql/reject.sql
var rejectSQL string

// publisher publishes one shard for as long as this relay owns it.
type publisher struct {
	relay *Relay
	shard int
	log   zerolog.Logger
}

// run holds one session after another: whatever goes wrong in a session, the
// next one fences it, reads the marker and knows what was published.
func (p *publisher) run(ctx context.Context) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		progress, err := p.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if progress {
			wait.Reset()
		}
		pause := wait.NextBackOff()
		p.relay.metrics.failures.Inc()
		p.log.Warn().Err(err).Dur("retry_in", pause).Msg("publishing interrupted")
		sleep(ctx, pause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (p *publisher) session(ctx context.Context) (progress bool, err error) {
	cfg := &p.relay.cfg
	cl, err := kgo.NewClient(append(slices.Clone(cfg.Kafka),
		kgo.TransactionalID(cfg.TopicPrefix+"relay."+strconv.Itoa(p.shard)),
		kgo.TransactionTimeout(cfg.TransactionTimeout),
		kgo.ConcurrentTransactionsBackoff(2*time.Millisecond),
		kgo.RecordPartitioner(eventPartitioner(cfg.TopicPrefix+MarkersTopic)),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(2<<20),
		kgo.UnknownTopicRetries(3),
		kgo.RecordDeliveryTimeout(cfg.TransactionTimeout),
	)...)
	if err != nil {
		return false, fmt.Errorf("open producer: %w", err)
	}
	defer cl.Close()
	if _, _, err := cl.ProducerID(ctx); err != nil {
		return false, fmt.Errorf("fence previous owner: %w", err)
	}
	markers := cfg.TopicPrefix + MarkersTopic
	published, err := readMarker(ctx, cfg.Kafka, markers, int32(p.shard)) //nolint:gosec // below Shards
	if err != nil {
		return false, err
	}
	if err := p.delete(ctx, published); err != nil {
		return false, err
	}
	for {
		rows, err := p.read(ctx)
		if err != nil {
			return progress, err
		}
		if len(rows) == 0 {
			p.relay.metrics.oldest.WithLabelValues(strconv.Itoa(p.shard)).Set(0)
			p.rest(ctx)
			if ctx.Err() != nil {
				return progress, nil
			}
			continue
		}
		p.relay.metrics.oldest.WithLabelValues(strconv.Itoa(p.shard)).Set(time.Since(rows[0].at).Seconds())
		if err := p.publish(ctx, cl, rows); err != nil {
			return progress, err
		}
		progress = true
		if ctx.Err() != nil {
			return progress, nil
		}
	}
}

func (p *publisher) rest(ctx context.Context) {
	t := time.NewTimer(p.relay.cfg.PollInterval)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-p.relay.wake[p.shard]:
	case <-t.C:
	}
}

type row struct {
	id     int64
	at     time.Time
	record *kgo.Record
}

func (p *publisher) read(ctx context.Context) ([]row, error) {
	rs, err := p.relay.cfg.Pool.Query(ctx, readSQL, p.shard, p.relay.cfg.BatchSize)
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	rows, err := pgx.CollectRows(rs, func(r pgx.CollectableRow) (row, error) {
		var (
			out     row
			m       Message
			key     []byte
			headers *string
		)
		if err := r.Scan(&out.id, &m.Topic, &key, &m.ID, &m.Type, &m.ContentType, &headers, &m.Data, &out.at); err != nil {
			return row{}, err
		}
		var err error
		if m.Headers, err = decodeHeaders(headers); err != nil {
			return row{}, fmt.Errorf("row %d: %w", out.id, err)
		}
		m.At = out.at
		out.record = m.record(p.relay.cfg.TopicPrefix, key)
		return out, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	return rows, nil
}

// record returns the message as a CloudEvent in Kafka binary mode.
func (m *Message) record(prefix string, key []byte) *kgo.Record {
	r := &kgo.Record{Topic: prefix + m.Topic, Key: key, Value: m.Data}
	add := func(k, v string) {
		if v != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
		}
	}
	add("ce_specversion", "1.0")
	add("ce_id", m.ID)
	add("ce_source", "/millrace")
	add("ce_type", m.Type)
	add("ce_time", m.At.UTC().Format(time.RFC3339Nano))
	add("content-type", m.ContentType)
	for _, h := range m.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader(h))
	}
	return r
}

// publish sends rows and their marker in one Kafka transaction, then deletes
// them. After an error the session is over: what became of the transaction is
// the next session's to find out.
func (p *publisher) publish(ctx context.Context, cl *kgo.Client, rows []row) error {
	// A transaction that has begun is finished even when ctx ends: a canceled end
	// would leave its outcome open until another owner fences it.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*p.relay.cfg.TransactionTimeout)
	defer cancel()

	ids := make([]int64, len(rows))
	for i := range rows {
		ids[i] = rows[i].id
	}
	if err := cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	var (
		mu       sync.Mutex
		failed   error
		rejected []rejection
	)
	for i := range rows {
		id := rows[i].id
		cl.Produce(work, rows[i].record, func(rec *kgo.Record, err error) {
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if p.refusedForGood(rec, err) {
				rejected = append(rejected, rejection{id, err})
			}
			failed = errors.Join(failed, err)
		})
	}
	cl.Produce(work, markerRecord(p.relay.cfg.TopicPrefix+MarkersTopic, p.shard, ids), func(_ *kgo.Record, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = errors.Join(failed, err)
	})
	flushErr := cl.Flush(work)
	mu.Lock()
	defer mu.Unlock()
	if err := errors.Join(failed, flushErr); err != nil {
		abortErr := cl.AbortBufferedRecords(work)
		if abortErr == nil {
			abortErr = cl.EndTransaction(work, kgo.TryAbort)
		}
		return errors.Join(fmt.Errorf("produce: %w", err), abortErr, p.reject(work, rejected))
	}
	if err := cl.EndTransaction(work, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	p.relay.metrics.published.Add(float64(len(rows)))
	for i := range rows {
		p.relay.metrics.delay.Observe(time.Since(rows[i].at).Seconds())
	}
	return p.delete(work, ids)
}

func (p *publisher) delete(ctx context.Context, ids []int64) error {
	if len(ids) == 0 {
		return nil
	}
	if _, err := p.relay.cfg.Pool.Exec(ctx, deleteSQL, p.shard, ids); err != nil {
		return fmt.Errorf("delete published rows: %w", err)
	}
	return nil
}

type rejection struct {
	id  int64
	err error
}

// refusedForGood reports whether Kafka will never take the record: without this
// one event would stop its shard for ever. A topic that an event names and that
// does not exist is the event's fault; a missing results topic is the
// installation's, and every event waits until it is there.
func (p *publisher) refusedForGood(r *kgo.Record, err error) bool {
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return r.Topic != p.relay.cfg.TopicPrefix+ResultsTopic
	}
	return errors.Is(err, kerr.InvalidTopicException) ||
		errors.Is(err, kerr.MessageTooLarge) ||
		errors.Is(err, kerr.InvalidRecord)
}

func (p *publisher) reject(ctx context.Context, rejected []rejection) error {
	for _, r := range rejected {
		if _, err := p.relay.cfg.Pool.Exec(ctx, rejectSQL, p.shard, r.id, r.err.Error()); err != nil {
			return fmt.Errorf("move event to dead letters: %w", err)
		}
		p.relay.metrics.rejected.Inc()
		p.log.Error().Int64("row", r.id).Err(r.err).Msg("Kafka refuses the event for good; it is in the dead letters now")
	}
	return nil
}

// eventPartitioner follows the record's own partition in the markers topic and
// Kafka's default (murmur2 of the key) in all others.
func eventPartitioner(markers string) kgo.Partitioner {
	return topicPartitioner{markers: markers, manual: kgo.ManualPartitioner(), keyed: kgo.StickyKeyPartitioner(nil)}
}

type topicPartitioner struct {
	markers       string
	manual, keyed kgo.Partitioner
}

func (p topicPartitioner) ForTopic(topic string) kgo.TopicPartitioner {
	if topic == p.markers {
		return p.manual.ForTopic(topic)
	}
	return p.keyed.ForTopic(topic)
}
