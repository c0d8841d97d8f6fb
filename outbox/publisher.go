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

//go:embed sql/find.sql
var findSQL string

//go:embed sql/owns.sql
var ownsSQL string

// publisher publishes one shard for as long as this relay owns it.
type publisher struct {
	relay *Relay
	shard int
	log   zerolog.Logger
	// alone is the highest row of a batch that Kafka refused as a whole: up to it,
	// rows are published one by one, which tells the one at fault from its
	// neighbours.
	alone int64
}

// run holds one session after another: whatever goes wrong in a session, the
// next one fences it, reads the marker and knows what was published.
func (p *publisher) run(ctx context.Context) {
	defer p.relay.metrics.oldest.DeleteLabelValues(strconv.Itoa(p.shard))
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
	// Fencing is for the owner: one that was asleep for longer than its lease must
	// not throw its successor out.
	var owner bool
	if err := cfg.Pool.QueryRow(ctx, ownsSQL, p.shard, p.relay.id).Scan(&owner); err != nil {
		return false, fmt.Errorf("look up owner: %w", err)
	}
	if !owner {
		return false, errors.New("another relay has taken the shard over")
	}
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
	if err := p.settle(ctx, markers); err != nil {
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
		if rows, err = p.rejectUnfit(ctx, rows); err != nil {
			return progress, err
		}
		if len(rows) == 0 {
			continue
		}
		if err := p.publish(ctx, cl, rows); err != nil {
			return progress, err
		}
		progress = true
		if ctx.Err() != nil {
			return progress, nil
		}
	}
}

// settle deletes what the shard's marker says the previous owner has published.
func (p *publisher) settle(ctx context.Context, markers string) error {
	ctx, cancel := context.WithTimeout(ctx, 4*p.relay.cfg.TransactionTimeout)
	defer cancel()
	marked, err := readMarker(ctx, p.relay.cfg.Kafka, markers, int32(p.shard)) //nolint:gosec // below Shards
	if err != nil || len(marked) == 0 {
		return err
	}
	ids := make([]int64, len(marked))
	for i := range marked {
		ids[i] = marked[i].id
	}
	rs, err := p.relay.cfg.Pool.Query(ctx, findSQL, p.shard, ids)
	if err != nil {
		return fmt.Errorf("find published rows: %w", err)
	}
	left, err := pgx.CollectRows(rs, func(r pgx.CollectableRow) (published, error) {
		var (
			id    int64
			event string
		)
		err := r.Scan(&id, &event)
		return publishedRow(id, event), err
	})
	if err != nil {
		return fmt.Errorf("find published rows: %w", err)
	}
	var done []int64
	for _, row := range left {
		if slices.Contains(marked, row) {
			done = append(done, row.id)
		}
	}
	if n := len(left) - len(done); n > 0 {
		p.log.Warn().Int("rows", n).Msg("the marker speaks of other rows with the same ids: the database was made anew or restored; publishing these")
	}
	return p.delete(ctx, done)
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
	event  string
	at     time.Time
	record *kgo.Record
	unfit  error // why the row can be no record
}

func (p *publisher) read(ctx context.Context) ([]row, error) {
	limit := p.relay.cfg.BatchSize
	if p.alone > 0 {
		limit = 1
	}
	rs, err := p.relay.cfg.Pool.Query(ctx, readSQL, p.shard, limit)
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
		m.Headers, out.unfit = decodeHeaders(headers)
		if m.Topic == MarkersTopic {
			out.unfit = errMarkersTopic
		}
		m.At, out.event = out.at, m.ID
		out.record = m.record(p.relay.cfg.TopicPrefix, key)
		return out, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read outbox: %w", err)
	}
	if len(rows) == 0 || rows[0].id >= p.alone {
		p.alone = 0
	}
	return rows, nil
}

// rejectUnfit moves rows that can be no record to the dead letters and returns
// the others.
func (p *publisher) rejectUnfit(ctx context.Context, rows []row) ([]row, error) {
	var rejected []rejection
	fit := rows[:0]
	for _, r := range rows {
		if r.unfit != nil {
			rejected = append(rejected, rejection{r.id, r.unfit})
		} else {
			fit = append(fit, r)
		}
	}
	return fit, p.reject(ctx, rejected)
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

	ids, marked := make([]int64, len(rows)), make([]published, len(rows))
	for i := range rows {
		ids[i], marked[i] = rows[i].id, publishedRow(rows[i].id, rows[i].event)
	}
	if err := cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	var (
		mu       sync.Mutex
		failed   error
		rejected []rejection
		suspects bool
	)
	fail := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	for i := range rows {
		id := rows[i].id
		cl.Produce(work, rows[i].record, func(rec *kgo.Record, err error) {
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case p.refusedForGood(rec, err), refusedWithBatch(err) && len(rows) == 1:
				rejected = append(rejected, rejection{id, err})
			case refusedWithBatch(err):
				suspects = true
			}
			fail(err)
		})
	}
	cl.Produce(work, markerRecord(p.relay.cfg.TopicPrefix+MarkersTopic, p.shard, marked), func(_ *kgo.Record, err error) {
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			fail(fmt.Errorf("marker: %w", err))
		}
	})
	flushErr := cl.Flush(work)
	mu.Lock()
	err, bad := errors.Join(failed, flushErr), slices.Clone(rejected)
	if suspects {
		p.alone = ids[len(ids)-1]
	}
	mu.Unlock()
	if err != nil {
		abortErr := cl.AbortBufferedRecords(work)
		if abortErr == nil {
			abortErr = cl.EndTransaction(work, kgo.TryAbort)
		}
		return errors.Join(fmt.Errorf("produce: %w", err), abortErr, p.reject(work, bad))
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
	return errors.Is(err, kerr.InvalidTopicException)
}

// refusedWithBatch reports whether Kafka refuses the record for good, but perhaps
// for what travels in one batch with it: brokers judge batches, and a topic that
// takes 1 MB refuses 2 MB of small records as readily as one large record.
func refusedWithBatch(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.InvalidRecord)
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
