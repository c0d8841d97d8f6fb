package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/settings"
	"millrace/outbox"
)

// outboxColumns are those that events are copied into.
var outboxColumns = []string{"shard", "topic", "key", "event_id", "event_type", "content_type", "data", "at"}

// copyEvents appends the events [from, to) in one transaction. Keys take turns.
func copyEvents(ctx context.Context, pool *pgxpool.Pool, keys []string, from, to int, value func(i int) []byte) error {
	i := from
	_, err := pool.CopyFrom(ctx, pgx.Identifier{"millrace", "outbox"}, outboxColumns, pgx.CopyFromFunc(func() ([]any, error) {
		if i == to {
			return nil, nil
		}
		m := outbox.Message{
			ID: "event-" + strconv.Itoa(i), Type: "bench", Key: keys[i%len(keys)], ContentType: "application/octet-stream", Data: value(i),
		}
		i++
		c, err := m.Columns()
		return []any{c.Shard, c.Topic, c.Key, c.EventID, c.EventType, c.ContentType, c.Data, c.At}, err
	}))
	if err != nil {
		return fmt.Errorf("fill the outbox: %w", err)
	}
	return nil
}

// again is how long a reader waits for a second copy of what it has.
const again = time.Second

// rate measures how fast an outbox that is full is published, and that every event
// came once and in the order of its key.
func (r *outboxRun) rate(ctx context.Context) error {
	return r.withPool(ctx, "rate", func(s settings.Settings, pool *pgxpool.Pool) error {
		keys := Keys(10_000)
		say(r.env.Progress, "outbox.rate: %d events", r.Records)
		random := rand.NewChaCha8([32]byte{})
		if err := copyEvents(ctx, pool, keys, 0, r.Records, func(i int) []byte { return newValue(random, i) }); err != nil {
			return err
		}
		// As the server does by itself within a minute.
		if _, err := pool.Exec(ctx, `VACUUM ANALYZE millrace.outbox`); err != nil {
			return fmt.Errorf("vacuum the outbox: %w", err)
		}
		reader, err := r.eventReader(&s)
		if err != nil {
			return err
		}
		defer reader.Close()
		var (
			book        = newLedger(r.Records, len(keys))
			first, last time.Time
			cpu, _      = cpuTime()
		)
		err = r.withRelay(ctx, &s, pool, false, func(ctx context.Context, _ *outbox.Relay) error {
			err := readEvents(ctx, reader, func(record *kgo.Record) error {
				if first.IsZero() {
					first = time.Now()
				}
				i := valueIndex(record.Value)
				return book.add(i, i%len(keys))
			}, book.complete)
			last = time.Now()
			return err
		})
		if err != nil {
			return err
		}
		if err := r.reportCPU("outbox.rate.cpu", cpu, r.Records, "event"); err != nil {
			return err
		}
		extra, cancel := context.WithTimeout(ctx, again)
		defer cancel()
		err = readEvents(extra, reader, func(record *kgo.Record) error {
			i := valueIndex(record.Value)
			return book.add(i, i%len(keys))
		}, func() bool { return false })
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		var left int
		if err := pool.QueryRow(ctx, `SELECT count(*) FROM millrace.outbox`).Scan(&left); err != nil || left > 0 {
			return errors.Join(err, fmt.Errorf("%d rows are left in the outbox", left))
		}
		return r.report(AtLeast("outbox.rate", float64(r.Records)/last.Sub(first).Seconds(), "events/s", 30*r.PeerRate))
	})
}

// readEvents hands records to take until done.
func readEvents(ctx context.Context, reader *kgo.Client, take func(*kgo.Record) error, done func() bool) error {
	for !done() {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		for record := range fetches.RecordsAll() {
			if err := take(record); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	outboxRate    = 2000 // events a second
	outboxGroup   = 10   // of them in one transaction
	outboxWriters = 4
)

// latency measures how long it takes from the commit of an event until a
// read_committed reader has it, with transactions and without.
func (r *outboxRun) latency(ctx context.Context) error {
	for _, way := range []struct {
		name        string
		atLeastOnce bool
		bound       float64
	}{{"outbox.latency", false, 50}, {"outbox.latency.at-least-once", true, 20}} {
		delays, err := r.delays(ctx, way.name, way.atLeastOnce)
		if err != nil {
			return err
		}
		for _, result := range []Result{
			Plain(way.name+".p50", quantile(delays, 0.50), "ms"),
			AtMost(way.name+".p99", quantile(delays, 0.99), "ms", way.bound),
		} {
			if err := r.report(result); err != nil {
				return err
			}
		}
	}
	return nil
}

// delays commits events at an even rate and returns how long each took to its
// reader, sorted, leaving the first second out.
func (r *outboxRun) delays(ctx context.Context, name string, atLeastOnce bool) (delays []time.Duration, err error) {
	warmUp := outboxRate * 2
	n := warmUp + int(r.Window.Seconds()*outboxRate)
	n -= n % (outboxGroup * outboxWriters)
	err = r.withPool(ctx, name, func(s settings.Settings, pool *pgxpool.Pool) error {
		reader, err := r.eventReader(&s)
		if err != nil {
			return err
		}
		defer reader.Close()
		keys := Keys(10_000)
		committed, arrived := make([]atomic.Int64, n), make([]int64, n)
		book := newLedger(n, len(keys))
		say(r.env.Progress, "%s: %d events, %d a second", name, n, outboxRate)
		cpu, _ := cpuTime()
		err = r.withRelay(ctx, &s, pool, atLeastOnce, func(ctx context.Context, relay *outbox.Relay) error {
			began := time.Now()
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			var writers sync.WaitGroup
			defer writers.Wait()
			for w := range outboxWriters {
				writers.Go(func() {
					if err := writeGroups(ctx, pool, relay, keys, began, w, committed); err != nil {
						cancel(err)
					}
				})
			}
			err := readEvents(ctx, reader, func(record *kgo.Record) error {
				i := valueIndex(record.Value)
				if i < n {
					arrived[i] = int64(time.Since(began))
				}
				return book.add(i, keyOf(i, len(keys)))
			}, book.complete)
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		})
		if err != nil {
			return err
		}
		for i := warmUp; i < n; i++ {
			// An event may be read before its commit is known here: it took no time.
			delays = append(delays, max(0, time.Duration(arrived[i]-committed[i].Load())))
		}
		return r.reportCPU(name+".cpu", cpu, n, "event")
	})
	slices.Sort(delays)
	return delays, err
}

// keyOf gives each writer keys of its own, so that a key's events are committed in
// the order of their numbers.
func keyOf(i, keys int) int {
	writer := i / outboxGroup % outboxWriters
	nth := i/(outboxGroup*outboxWriters)*outboxGroup + i%outboxGroup // of this writer
	return nth%(keys/outboxWriters)*outboxWriters + writer
}

// writeGroups commits every outboxWriters-th group of events, each when it is due,
// and tells the relay as a worker does.
func writeGroups(ctx context.Context, pool *pgxpool.Pool, relay *outbox.Relay, keys []string, began time.Time, writer int, committed []atomic.Int64) error {
	random := rand.NewChaCha8([32]byte{byte(writer)}) //nolint:gosec // a handful
	for from := writer * outboxGroup; from < len(committed); from += outboxWriters * outboxGroup {
		if err := pause(ctx, time.Until(began.Add(time.Duration(from)*time.Second/outboxRate))); err != nil {
			return err
		}
		var shards []int
		messages := make([]outbox.Message, outboxGroup)
		for k := range messages {
			i := from + k
			key := keys[keyOf(i, len(keys))]
			messages[k] = outbox.Message{
				ID: "event-" + strconv.Itoa(i), Type: "bench", Key: key, ContentType: "application/octet-stream", Data: newValue(random, i),
			}
			shards = append(shards, outbox.Shard(key))
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return outbox.Append(ctx, tx, messages...) })
		if err != nil {
			return fmt.Errorf("append events: %w", err)
		}
		now := int64(time.Since(began))
		relay.Notify(shards...)
		for k := range messages {
			committed[from+k].Store(now)
		}
	}
	return nil
}
