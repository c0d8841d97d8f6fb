package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/settings"
	"millrace/outbox"
)

// pinBound is how much of the rate of the first part must be left in the last.
const pinBound = 80

// pin measures how the rate holds while somebody keeps the server from removing
// deleted rows: a reader with a snapshot, and a writer with a transaction id. Events
// come as fast as they are published. Without a time to do so it measures nothing.
func (r *outboxRun) pin(ctx context.Context) error {
	if r.PinXmin == 0 {
		return nil
	}
	return r.withPool(ctx, "pin", func(s settings.Settings, pool *pgxpool.Pool) error {
		release, err := pinXmin(ctx, pool)
		if err != nil {
			return err
		}
		defer release()
		reader, err := r.eventReader(&s)
		if err != nil {
			return err
		}
		defer reader.Close()
		part := min(time.Minute, r.PinXmin/3)
		say(r.env.Progress, "outbox.pin: %s; the first %s against the last", r.PinXmin, part)
		var (
			first, last int
			read        atomic.Int64
			began       time.Time
		)
		err = r.withRelay(ctx, &s, pool, false, func(ctx context.Context, _ *outbox.Relay) error {
			ctx, cancel := context.WithCancelCause(ctx)
			defer cancel(nil)
			ended := make(chan struct{})
			defer func() { cancel(nil); <-ended }()
			go func() {
				defer close(ended)
				if err := feed(ctx, pool, &read); err != nil {
					cancel(err)
				}
			}()
			err := readEvents(ctx, reader, func(*kgo.Record) error {
				read.Add(1)
				if began.IsZero() {
					began = time.Now()
				}
				switch age := time.Since(began); {
				case age < part:
					first++
				case age >= r.PinXmin-part && age < r.PinXmin:
					last++
				}
				return nil
			}, func() bool { return !began.IsZero() && time.Since(began) >= r.PinXmin })
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, result := range []Result{
			Plain("outbox.pin.first", float64(first)/part.Seconds(), "events/s"),
			Plain("outbox.pin.last", float64(last)/part.Seconds(), "events/s"),
			AtLeast("outbox.pin", 100*float64(last)/float64(max(first, 1)), "% of the first part", pinBound),
		} {
			if err := r.report(result); err != nil {
				return err
			}
		}
		return nil
	})
}

// pinXmin opens a transaction with a snapshot and one with an id.
func pinXmin(ctx context.Context, pool *pgxpool.Pool) (release func(), err error) {
	var open []*pgx.Conn
	release = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		for _, conn := range open {
			_ = conn.Close(ctx)
		}
	}
	for _, first := range []string{`SELECT count(*) FROM millrace.relays`, `SELECT pg_current_xact_id()::text`} {
		conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
		if err == nil {
			open = append(open, conn)
			if _, err = conn.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ"); err == nil {
				_, err = conn.Exec(ctx, first)
			}
		}
		if err != nil {
			release()
			return nil, fmt.Errorf("pin xmin: %w", err)
		}
	}
	return release, nil
}

// feed keeps the outbox filled with small events until ctx ends.
func feed(ctx context.Context, pool *pgxpool.Pool, read *atomic.Int64) error {
	const ahead, group = 40_000, 4_000
	keys := Keys(10_000)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for written := 0; ; {
		for int64(written)-read.Load() < ahead {
			err := copyEvents(ctx, pool, keys, written, written+group, func(i int) []byte {
				return binary.BigEndian.AppendUint64(nil, uint64(i)) //nolint:gosec // counts from 0
			})
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			written += group
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
