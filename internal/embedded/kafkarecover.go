package embedded

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// When the broker is killed it aborts on its next start what was open, but
// writes no abort marker. A read_committed reader drops an aborted producer's
// records up to that marker, and a transactional id keeps its producer id, so
// without one the reader would drop the next, committed, transaction as well.
// The markers that are missing are therefore written before anyone else comes.

// openTransaction is a transaction that a partition's log does not end.
type openTransaction struct {
	topic      string
	partition  int32
	producerID int64
}

// openTransactions reads a broker's folder at rest. It may report one that
// compaction took the marker of; an abort marker too many does no harm while
// its producer has nothing open.
func openTransactions(dir string) ([]openTransaction, error) {
	root := filepath.Join(dir, "partitions")
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []openTransaction
	for _, e := range entries {
		cut := strings.LastIndexByte(e.Name(), '-')
		if cut < 0 {
			continue
		}
		topic, topicErr := url.PathUnescape(e.Name()[:cut])
		partition, partErr := strconv.ParseInt(e.Name()[cut+1:], 10, 32)
		if topicErr != nil || partErr != nil {
			continue
		}
		open, err := openInPartition(filepath.Join(root, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read log of %s/%d: %w", topic, partition, err)
		}
		for _, id := range open {
			all = append(all, openTransaction{topic: topic, partition: int32(partition), producerID: id})
		}
	}
	return all, nil
}

func openInPartition(dir string) ([]int64, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.dat"))
	if err != nil {
		return nil, err
	}
	type segment struct {
		base int64
		name string
	}
	var segments []segment
	for _, name := range names {
		base, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(name), ".dat"), 10, 64)
		if err == nil {
			segments = append(segments, segment{base: base, name: name})
		}
	}
	slices.SortFunc(segments, func(a, b segment) int { return int(a.base - b.base) })
	open := make(map[int64]bool)
	for _, s := range segments {
		if err := scanSegment(s.name, open); err != nil {
			return nil, err
		}
	}
	ids := make([]int64, 0, len(open))
	for id := range open {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// The parts of a record batch (format 2, KIP-98) that tell transactions: its
// length counts what follows the first 12 bytes.
const (
	batchHead       = 61
	batchLengthAt   = 8
	batchAttributes = 21
	batchProducerAt = 43
	lengthFollows   = 12

	attributeTransactional = 0x10
	attributeControl       = 0x20
)

// scanSegment follows transactions through one file of the log. What a kill cut
// off at the end is not looked at; the broker drops it as well.
func scanSegment(name string, open map[int64]bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	r := bufio.NewReaderSize(f, 1<<16)
	var head [batchHead]byte
	for {
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
		rest := int64(binary.BigEndian.Uint32(head[batchLengthAt:])) + lengthFollows - batchHead
		if rest < 0 {
			return nil
		}
		id := int64(binary.BigEndian.Uint64(head[batchProducerAt:])) //nolint:gosec // a bit pattern
		switch attributes := binary.BigEndian.Uint16(head[batchAttributes:]); {
		case attributes&attributeControl != 0:
			delete(open, id)
		case attributes&attributeTransactional != 0:
			open[id] = true
		}
		if n, err := io.CopyN(io.Discard, r, rest); err != nil {
			if errors.Is(err, io.EOF) && n < rest {
				return nil
			}
			return err
		}
	}
}

// abortOpen writes the missing markers through the broker's own protocol.
func abortOpen(addr string, open []openTransaction) error {
	if len(open) == 0 {
		return nil
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		return err
	}
	defer cl.Close()
	// Starting the broker is short and has no caller's context to end with.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	markers := make(map[int64]kadm.TxnMarkers)
	for _, o := range open {
		m, ok := markers[o.producerID]
		if !ok {
			m = kadm.TxnMarkers{ProducerID: o.producerID, Topics: make(kadm.TopicsSet)}
			markers[o.producerID] = m
		}
		m.Topics.Add(o.topic, o.partition)
	}
	list := make([]kadm.TxnMarkers, 0, len(markers))
	for _, m := range markers {
		list = append(list, m)
	}
	responses, err := kadm.NewClient(cl).WriteTxnMarkers(ctx, list...)
	if err != nil {
		return err
	}
	var errs []error
	for _, response := range responses.Sorted() {
		for _, topic := range response.Topics.Sorted() {
			for _, p := range topic.Partitions.Sorted() {
				if p.Err != nil {
					errs = append(errs, fmt.Errorf("%s/%d: %w", p.Topic, p.Partition, p.Err))
				}
			}
		}
	}
	return errors.Join(errs...)
}
