package outbox

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// MarkersTopic is the topic, without the prefix, that holds one marker per Kafka
// transaction of a relay; partition n belongs to shard n. It is compacted: only
// the newest marker of a shard is ever read.
const MarkersTopic = "relay.markers"

const markerFormat = 2

// PublishedRow names a row that has been published. A number alone does not tell
// rows apart for ever: a database that was made anew or restored hands out numbers
// again, and what was published of its predecessor's rows must not delete its own.
type PublishedRow struct {
	number int64
	sum    uint32 // of the event id
}

func publishedRow(number int64, event string) PublishedRow {
	h := fnv.New32a()
	_, _ = h.Write([]byte(event)) // a hash.Hash never fails
	return PublishedRow{number: number, sum: h.Sum32()}
}

func (r *Row) published() PublishedRow { return publishedRow(r.Number, r.ID) }

// encodeMarker lists the rows that have been published and are not yet deleted:
// a format byte, then for each row, in ascending order, the difference to the id
// before (an unsigned varint) and the sum (4 bytes, big-endian).
func encodeMarker(rows []PublishedRow) []byte {
	rows = slices.Clone(rows)
	slices.SortFunc(rows, func(a, b PublishedRow) int { return cmp.Compare(a.number, b.number) })
	b := []byte{markerFormat}
	last := int64(0)
	for _, r := range rows {
		b = binary.AppendUvarint(b, uint64(r.number-last)) //nolint:gosec // ids ascend, so the difference is not negative
		b = binary.BigEndian.AppendUint32(b, r.sum)
		last = r.number
	}
	return b
}

func decodeMarker(b []byte) ([]PublishedRow, error) {
	if len(b) == 0 || b[0] != markerFormat {
		return nil, errors.New("decode marker: unknown format; it was written by another version or by somebody else")
	}
	b = b[1:]
	var (
		rows []PublishedRow
		last int64
	)
	for len(b) > 0 {
		diff, n := binary.Uvarint(b)
		id := last + int64(diff) //nolint:gosec // an overflow shows as a descent
		if n <= 0 || id < last || len(b) < n+4 {
			return nil, errors.New("decode marker: broken list of rows")
		}
		rows = append(rows, PublishedRow{number: id, sum: binary.BigEndian.Uint32(b[n:])})
		last, b = id, b[n+4:]
	}
	return rows, nil
}

func markerRecord(topic string, shard int, rows []PublishedRow) *kgo.Record {
	return &kgo.Record{
		Topic:     topic,
		Partition: int32(shard), //nolint:gosec // below Shards
		Key:       []byte(strconv.Itoa(shard)),
		Value:     encodeMarker(rows),
	}
}

// readMarker returns the rows in the newest committed marker of a shard. It is
// called after the previous owner has been fenced, so that no transaction of
// the shard is open: the last stable offset is the end of the log.
func readMarker(ctx context.Context, opts []kgo.Opt, topic string, shard int32) ([]PublishedRow, error) {
	start, end, err := markerBounds(ctx, opts, topic, shard)
	if err != nil {
		return nil, err
	}
	// The newest marker is a few records before the end: behind it lies the record
	// that ends its transaction, and perhaps aborted attempts. Look further back
	// until one turns up.
	for span := int64(16); ; span *= 8 {
		from := max(start, end-span)
		if from >= end {
			return nil, nil
		}
		value, err := lastCommitted(ctx, opts, topic, shard, from, end)
		if err != nil {
			return nil, err
		}
		if value != nil {
			return decodeMarker(value)
		}
		if from == start {
			return nil, nil
		}
	}
}

func markerBounds(ctx context.Context, opts []kgo.Opt, topic string, shard int32) (start, end int64, err error) {
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return 0, 0, fmt.Errorf("read marker: %w", err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err != nil {
		return 0, 0, fmt.Errorf("read marker: list start offsets: %w", err)
	}
	ends, err := adm.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return 0, 0, fmt.Errorf("read marker: list stable offsets: %w", err)
	}
	s, ok := starts.Lookup(topic, shard)
	if !ok || s.Err != nil {
		return 0, 0, fmt.Errorf("read marker: start of %s/%d: %w", topic, shard, errors.Join(s.Err, missing(ok)))
	}
	e, ok := ends.Lookup(topic, shard)
	if !ok || e.Err != nil {
		return 0, 0, fmt.Errorf("read marker: stable end of %s/%d: %w", topic, shard, errors.Join(e.Err, missing(ok)))
	}
	return s.Offset, e.Offset, nil
}

func missing(found bool) error {
	if found {
		return nil
	}
	return errors.New("partition does not exist; create the topics with `millrace topics`")
}

// lastCommitted returns the value of the last committed marker in [from, end).
func lastCommitted(ctx context.Context, opts []kgo.Opt, topic string, shard int32, from, end int64) ([]byte, error) {
	opts = append(slices.Clone(opts),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {shard: kgo.NewOffset().At(from)}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // the end of the log is a control record as a rule
		kgo.FetchMaxWait(500*time.Millisecond),
	)
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("read marker: %w", err)
	}
	defer cl.Close()
	var value []byte
	for {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read marker: %w", err)
		}
		done := false
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() && r.Offset < end {
				value = r.Value
			}
			done = done || r.Offset >= end-1
		})
		if done {
			return value, nil
		}
	}
}
