package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed sql/snapshot.sql
var snapshotSQL string

//go:embed sql/read.sql
var readSQL string

// readAll reads batches until ctx ends. While rows abound it reads one ahead of
// the batch that is being published; when they trickle it waits for that batch, so
// that the next holds all that has come in the meantime.
func (s *session) readAll(ctx context.Context) error {
	outstanding := 0
	rest := s.relay.cfg.PollInterval
	for ctx.Err() == nil {
		// What this was woken for has been committed: the read that follows has it, and
		// need not be followed by another.
		select {
		case <-s.relay.wake[s.shard]:
		default:
		}
		began := time.Now()
		rows, all, err := s.read(ctx)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			rest = min(minRest, s.relay.cfg.PollInterval)
			select {
			case s.batches <- &batch{rows: rows, prepared: s.sink.Prepare(rows)}:
				outstanding++
			case <-ctx.Done():
				return nil
			}
			ahead := 1
			if all || s.alone > 0 {
				ahead = 0
			}
			for outstanding > ahead {
				select {
				case <-s.done:
					outstanding--
				case <-ctx.Done():
					return nil
				}
			}
		}
		if all && len(rows) > 0 {
			sleep(ctx, gathering(time.Since(began)))
		}
		if all {
			s.rest(ctx, rest)
			rest = min(2*rest, s.relay.cfg.PollInterval)
		}
	}
	return nil
}

// pace is how far apart reads of a shard are, at least, in which rows trickle. A
// batch costs the broker and the database about the same for one row as for a
// hundred; without a pace, 2,000 commits a second keep two processors so busy with
// small batches that all of them take longer.
const pace = 10 * time.Millisecond

// gathering returns how long a shard rests, for rows to gather, after a batch that
// took that long. When batches take long because the machine is busy, that it is busy
// with small ones is part of the reason: the longer they take, the fewer they are to be.
func gathering(took time.Duration) time.Duration {
	return max(pace-took, min(2*(took-2*pace), maxGathering))
}

// maxGathering keeps the rest from becoming most of what an event waits: at 100 ms
// one event in a hundred waited for 90 ms, where with this it is 42.
const maxGathering = 10 * time.Millisecond

// minRest is how soon a shard is looked at again when rows have just been there:
// a relay is not told of what the workers of other relays commit.
const minRest = 5 * time.Millisecond

func (s *session) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-s.relay.wake[s.shard]:
	case <-t.C:
	}
}

// batchBytes bounds the data of a batch: a few of them are in memory for each
// shard.
const batchBytes = 4 << 20

var errAnotherServer = errors.New("the database server is another one than before")

// read returns the next rows, and whether there are no more at the moment. Rows
// that can be no event go to the dead letters.
func (s *session) read(ctx context.Context) (rows []Row, all bool, err error) {
	limit := s.relay.cfg.BatchSize
	if s.alone > 0 {
		limit = 1
	}
	s.mu.Lock()
	from := s.cursor.next()
	s.mu.Unlock()
	var (
		snap  snapshot
		unfit = make(map[int64]error)
		ids   = make([]int64, 0, limit)
		bytes int
	)
	err = walking(ctx, s.relay.cfg.Pool, func(b *pgx.Batch, text *string, server *time.Time) {
		b.Queue(readSQL, s.shard, from.parked, from.xids, from.after, from.flying, limit, batchBytes).Query(func(rs pgx.Rows) error {
			// A server that took another's place may hand out ids again that this cursor
			// has passed.
			if s.server.IsZero() {
				s.server = *server
			} else if !server.Equal(s.server) {
				return errAnotherServer
			}
			var err error
			if snap, err = parseSnapshot(*text); err != nil {
				return err
			}
			rows = make([]Row, 0, limit)
			for rs.Next() {
				row, err := scanRow(rs)
				var bad *unfitError
				switch {
				case errors.As(err, &bad):
					unfit[row.Number] = bad.cause
				case err != nil:
					return err
				default:
					rows = append(rows, row)
				}
				ids = append(ids, row.Number)
				bytes += len(row.Data)
			}
			return rs.Err()
		})
	})
	if err != nil {
		return nil, false, fmt.Errorf("read outbox: %w", err)
	}
	all = len(ids) < limit && bytes < batchBytes
	if len(ids) == 0 || ids[0] >= s.alone {
		s.alone = 0
	}
	s.mu.Lock()
	s.cursor.saw(snap, ids, all)
	high := s.cursor.high
	s.remember()
	s.mu.Unlock()
	if len(unfit) == 0 {
		return rows, all, nil
	}
	if err := s.reject(ctx, unfit); err != nil {
		return nil, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for number := range unfit {
		s.cursor.gone([]int64{number}, high, 0)
	}
	return rows, all, nil
}

// walking runs queries that walk the outbox in the order of its ids, in one round
// trip and with one snapshot, which is there before the first of them is read.
func walking(ctx context.Context, pool *pgxpool.Pool, queue func(b *pgx.Batch, snapshot *string, server *time.Time)) error {
	var (
		b        pgx.Batch
		snapshot string
		server   time.Time
		ignored  string
	)
	b.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	b.Queue(snapshotSQL).QueryRow(func(r pgx.Row) error { return r.Scan(&snapshot, &server, &ignored, &ignored) })
	queue(&b, &snapshot, &server)
	b.Queue("COMMIT")
	return pool.SendBatch(ctx, &b).Close()
}

// unfitError says why a row can be no event.
type unfitError struct{ cause error }

func (e *unfitError) Error() string { return e.cause.Error() }

func scanRow(rs pgx.Rows) (Row, error) {
	var (
		row     Row
		key     []byte
		headers *string
	)
	if err := rs.Scan(&row.Number, &row.Topic, &key, &row.ID, &row.Type, &row.ContentType, &headers, &row.Data, &row.At); err != nil {
		return row, err
	}
	row.Key, row.Keyed = string(key), key != nil
	if row.Topic == MarkersTopic {
		return row, &unfitError{errMarkersTopic}
	}
	var err error
	if row.Headers, err = decodeHeaders(headers); err != nil {
		return row, &unfitError{err}
	}
	return row, nil
}
