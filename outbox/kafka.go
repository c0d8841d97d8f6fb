package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// kafkaSink publishes to Kafka: each batch in a transaction together with the
// marker of its rows, or in atLeastOnce without either.
type kafkaSink struct {
	opts        []kgo.Opt
	prefix      string
	timeout     time.Duration
	atLeastOnce bool
}

// Open makes a producer of the shard's own. With transactions, asking for its id
// fences the previous owner and settles the transaction that it may have left.
func (s *kafkaSink) Open(ctx context.Context, shard int) (SinkShard, error) {
	opts := append(slices.Clone(s.opts),
		kgo.RecordPartitioner(eventPartitioner(s.prefix+MarkersTopic)),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(2<<20),
		kgo.UnknownTopicRetries(3),
		kgo.RecordDeliveryTimeout(s.timeout),
	)
	if !s.atLeastOnce {
		opts = append(opts,
			kgo.TransactionalID(s.prefix+"relay."+strconv.Itoa(shard)),
			kgo.TransactionTimeout(s.timeout),
			kgo.ConcurrentTransactionsBackoff(2*time.Millisecond),
		)
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("open producer: %w", err)
	}
	if _, _, err := cl.ProducerID(ctx); err != nil {
		cl.Close()
		return nil, fmt.Errorf("fence previous owner: %w", err)
	}
	return &kafkaShard{sink: s, shard: shard, client: cl}, nil
}

type kafkaShard struct {
	sink   *kafkaSink
	shard  int
	client *kgo.Client
}

func (s *kafkaShard) Published(ctx context.Context) ([]PublishedRow, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*s.sink.timeout)
	defer cancel()
	// Without transactions, too: the shard may come from an owner that has them.
	return readMarker(ctx, s.sink.opts, s.sink.prefix+MarkersTopic, int32(s.shard)) //nolint:gosec // below Shards
}

func (s *kafkaShard) Close() { s.client.Close() }

type kafkaBatch struct {
	shard   *kafkaShard
	rows    []PublishedRow
	records []*kgo.Record
}

func (s *kafkaShard) Prepare(rows []Row) Batch {
	b := &kafkaBatch{shard: s, rows: make([]PublishedRow, len(rows)), records: make([]*kgo.Record, len(rows))}
	for i := range rows {
		b.rows[i] = rows[i].published()
		b.records[i] = rows[i].record(s.sink.prefix)
	}
	return b
}

// Publish sends the rows and their marker in one Kafka transaction. After an error
// what became of the transaction is the next owner's to find out, be it this relay
// or another.
func (b *kafkaBatch) Publish(ctx context.Context, unsettled []PublishedRow) error {
	cl, sink := b.shard.client, b.shard.sink
	if sink.atLeastOnce {
		return b.produce(ctx, nil)
	}
	if err := cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	marker := markerRecord(sink.prefix+MarkersTopic, b.shard.shard, slices.Concat(unsettled, b.rows))
	if err := b.produce(ctx, marker); err != nil {
		abortErr := cl.AbortBufferedRecords(ctx)
		if abortErr == nil {
			abortErr = cl.EndTransaction(ctx, kgo.TryAbort)
		}
		return errors.Join(err, abortErr)
	}
	if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// produce sends the rows, and the marker if there is one, and waits for Kafka to
// have them.
func (b *kafkaBatch) produce(ctx context.Context, marker *kgo.Record) error {
	cl := b.shard.client
	var (
		mu       sync.Mutex
		failed   error
		refused  = make(map[int64]error)
		together bool
	)
	fail := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	for i, record := range b.records {
		number := b.rows[i].number
		cl.Produce(ctx, record, func(rec *kgo.Record, err error) {
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case b.shard.sink.refusedForGood(rec, err), refusedWithBatch(err) && len(b.records) == 1:
				refused[number] = err
			case refusedWithBatch(err):
				together = true
			}
			fail(err)
		})
	}
	if marker != nil {
		cl.Produce(ctx, marker, func(_ *kgo.Record, err error) {
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				fail(fmt.Errorf("marker: %w", err))
			}
		})
	}
	flushErr := cl.Flush(ctx)
	mu.Lock()
	defer mu.Unlock()
	err := errors.Join(failed, flushErr)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("produce: %w", err)
	if len(refused) > 0 || together {
		return &RefusedError{Rows: refused, Together: together, Err: err}
	}
	return err
}

// refusedForGood reports whether Kafka will never take the record: without this
// one event would stop its shard for ever. A topic that an event names and that
// does not exist is the event's fault; a missing results topic is the
// installation's, and every event waits until it is there.
func (s *kafkaSink) refusedForGood(r *kgo.Record, err error) bool {
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return r.Topic != s.prefix+ResultsTopic
	}
	return errors.Is(err, kerr.InvalidTopicException)
}

// refusedWithBatch reports whether Kafka refuses the record for good, but perhaps
// for what travels in one batch with it: brokers judge batches, and a topic that
// takes 1 MB refuses 2 MB of small records as readily as one large record.
func refusedWithBatch(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.InvalidRecord)
}

var (
	cloudEventsVersion = []byte("1.0")
	cloudEventsSource  = []byte("/millrace")
)

// record returns the row as a CloudEvent in Kafka binary mode.
func (r *Row) record(prefix string) *kgo.Record {
	out := &kgo.Record{Topic: prefix + r.Topic, Value: r.Data, Headers: make([]kgo.RecordHeader, 0, 6+len(r.Headers))}
	if r.Keyed {
		out.Key = []byte(r.Key)
	}
	out.Headers = append(out.Headers,
		kgo.RecordHeader{Key: "ce_specversion", Value: cloudEventsVersion},
		kgo.RecordHeader{Key: "ce_id", Value: []byte(r.ID)},
		kgo.RecordHeader{Key: "ce_type", Value: []byte(r.Type)},
		kgo.RecordHeader{Key: "ce_time", Value: r.At.UTC().AppendFormat(nil, time.RFC3339Nano)},
	)
	// A row may name a source of its own.
	if !slices.ContainsFunc(r.Headers, func(h millrace.Header) bool { return h.Key == "ce_source" }) {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: "ce_source", Value: cloudEventsSource})
	}
	if r.ContentType != "" {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: "content-type", Value: []byte(r.ContentType)})
	}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, kgo.RecordHeader(h))
	}
	return out
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
