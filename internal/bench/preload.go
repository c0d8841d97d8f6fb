package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// valueSize is the size of every record's value.
const valueSize = 512

// Keys returns conversations "c0", "c1", ….
func Keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "c" + strconv.Itoa(i)
	}
	return keys
}

// keysOf returns n conversations that the default partitioner puts into one
// partition of many.
func keysOf(n, partition, partitions int) []string {
	partitioner := kgo.StickyKeyPartitioner(nil).ForTopic("")
	keys := make([]string, 0, n)
	for i := 0; len(keys) < n; i++ {
		key := "c" + strconv.Itoa(i)
		if partitioner.Partition(&kgo.Record{Key: []byte(key)}, partitions) == partition {
			keys = append(keys, key)
		}
	}
	return keys
}

// load is what a topic is filled with.
type load struct {
	topic   string
	records int
	// keys take turns.
	keys []string
	// more adds the records to what is there.
	more bool
}

// newValue returns bytes that no compression makes small, with i in front.
func newValue(random *rand.ChaCha8, i int) []byte {
	value := make([]byte, valueSize)
	_, _ = random.Read(value)                    // never fails
	binary.BigEndian.PutUint64(value, uint64(i)) //nolint:gosec // counts from 0
	return value
}

// valueIndex returns the i of newValue.
func valueIndex(value []byte) int {
	return int(binary.BigEndian.Uint64(value)) //nolint:gosec // newValue's
}

// preload fills a topic, unless it holds the wanted number of records already.
func preload(ctx context.Context, client *kgo.Client, l load, progress io.Writer) error {
	have, err := count(ctx, kadm.NewClient(client), l.topic)
	if err != nil {
		return err
	}
	switch {
	case l.more || have == 0:
	case have == int64(l.records):
		return nil
	default:
		return fmt.Errorf("topic %s holds %d records, want %d or none: delete it, or take another prefix", l.topic, have, l.records)
	}
	producer, err := kgo.NewClient(slices.Concat(client.Opts(), []kgo.Opt{
		kgo.DefaultProduceTopic(l.topic),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.ProducerLinger(5 * time.Millisecond),
		kgo.MaxBufferedRecords(50_000),
	})...)
	if err != nil {
		return fmt.Errorf("open producer: %w", err)
	}
	defer producer.Close()

	var (
		done   atomic.Int64
		failed atomic.Pointer[error]
		random = rand.NewChaCha8([32]byte{})
		began  = time.Now()
		told   = began
	)
	for i := range l.records {
		record := &kgo.Record{Key: []byte(l.keys[i%len(l.keys)]), Value: newValue(random, i)}
		producer.Produce(ctx, record, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
				return
			}
			done.Add(1)
		})
		if failed.Load() != nil || ctx.Err() != nil {
			break
		}
		if i%10_000 == 0 && time.Since(told) > 2*time.Second {
			told = time.Now()
			say(progress, "preloading %s: %d of %d records", l.topic, done.Load(), l.records)
		}
	}
	err = producer.Flush(ctx)
	if first := failed.Load(); first != nil {
		err = errors.Join(err, *first)
	}
	if err != nil {
		return fmt.Errorf("preload %s: %w", l.topic, err)
	}
	took := time.Since(began)
	say(progress, "preloaded %s: %d records in %.1f s", l.topic, l.records, took.Seconds())
	return nil
}

// count returns how many records a topic holds.
func count(ctx context.Context, adm *kadm.Client, topic string) (int64, error) {
	starts, err := adm.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("list start offsets of %s: %w", topic, err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("list end offsets of %s: %w", topic, err)
	}
	n := int64(0)
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(end.Topic, end.Partition)
		n += end.Offset - start.Offset
	})
	return n, nil
}

// say tells people how far a run is. That nobody listens is no reason to stop.
func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, "bench: "+format+"\n", args...)
}
