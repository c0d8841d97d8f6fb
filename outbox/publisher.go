package outbox

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

//go:embed sql/delete.sql
var deleteSQL string

//go:embed sql/reject.sql
var rejectSQL string

//go:embed sql/find.sql
var findSQL string

//go:embed sql/owns.sql
var ownsSQL string

var errNotOwner = errors.New("another relay has taken the shard over")

// publisher publishes one shard for as long as this relay owns it.
type publisher struct {
	relay *Relay
	shard int
	log   zerolog.Logger
	// floor is where whoever has the shard next may begin to read.
	floor atomic.Int64
	// position is where the rows begin that are not yet published, but for those that
	// commit late.
	position atomic.Int64
	// begun is set once both are known.
	begun atomic.Bool
	// alone is the highest row of a batch that was refused as a whole: up to it, rows
	// are published one by one, which tells the one at fault from its neighbours.
	alone int64
}

// run holds one session after another: whatever goes wrong in a session, the
// next one fences it and learns from the sink what was published.
func (p *publisher) run(ctx context.Context) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		s := &session{publisher: p}
		err := s.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.progress {
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

// session is a shard between opening it at the sink and the first error. Three
// goroutines pass the rows on: one reads and prepares a batch while another waits
// for the sink to take the one before and a third deletes what was published.
// Channels without room to spare keep them together: at most one batch is in each
// pair of hands.
type session struct {
	*publisher
	sink     SinkShard
	progress bool
	alone    int64         // the reader's: up to this row batches are of one
	suspect  int64         // the last row of a batch that was refused as a whole
	server   time.Time     // when the server started
	batches  chan *batch   // from the reader
	done     chan struct{} // a batch is published: to the reader
	sent     chan *batch   // published, to be deleted
	stuck    chan struct{} // closed when nobody takes from sent any more

	mu        sync.Mutex
	cursor    *cursor
	unsettled []PublishedRow // published, and perhaps not deleted
}

// batch is rows on their way.
type batch struct {
	rows     []Row
	prepared Batch
}

func (s *session) run(ctx context.Context) (err error) {
	cfg := &s.relay.cfg
	// Fencing is for the owner: one that was asleep for longer than its lease must
	// not throw its successor out.
	var floor int64
	switch err := cfg.Pool.QueryRow(ctx, ownsSQL, s.shard, s.relay.id).Scan(&floor); {
	case errors.Is(err, pgx.ErrNoRows):
		return errNotOwner
	case err != nil:
		return fmt.Errorf("look up owner: %w", err)
	}
	if s.sink, err = cfg.Sink.Open(ctx, s.shard); err != nil {
		return err
	}
	defer s.sink.Close()
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.alone = s.publisher.alone
	s.cursor = newCursor(floor)
	s.remember()
	s.begun.Store(true)
	s.batches, s.done = make(chan *batch), make(chan struct{}, 2)
	s.sent, s.stuck = make(chan *batch), make(chan struct{})

	stages, ctx := errgroup.WithContext(ctx)
	stages.Go(func() error { defer close(s.batches); return s.readAll(ctx) })
	stages.Go(func() error { defer close(s.sent); return s.publishAll(ctx) })
	stages.Go(func() error { defer close(s.stuck); return s.deleteAll(ctx) })
	err = stages.Wait()
	s.publisher.alone = max(s.alone, s.suspect)
	return err
}

// settle deletes what an earlier owner has published.
func (s *session) settle(ctx context.Context) error {
	marked, err := s.sink.Published(ctx)
	if err != nil || len(marked) == 0 {
		return err
	}
	numbers := make([]int64, len(marked))
	for i := range marked {
		numbers[i] = marked[i].number
	}
	rs, err := s.relay.cfg.Pool.Query(ctx, findSQL, s.shard, numbers)
	if err != nil {
		return fmt.Errorf("find published rows: %w", err)
	}
	left, err := pgx.CollectRows(rs, func(r pgx.CollectableRow) (PublishedRow, error) {
		var (
			number int64
			event  string
		)
		err := r.Scan(&number, &event)
		return publishedRow(number, event), err
	})
	if err != nil {
		return fmt.Errorf("find published rows: %w", err)
	}
	var done []int64
	for _, row := range left {
		if slices.Contains(marked, row) {
			done = append(done, row.number)
		}
	}
	if n := len(left) - len(done); n > 0 {
		s.log.Warn().Int("rows", n).Msg("the marker speaks of other rows with the same ids: the database was made anew or restored; publishing these")
	}
	if len(done) == 0 {
		return nil
	}
	_, err = s.delete(ctx, done)
	return err
}

// publishAll publishes batches until there are no more. A batch that has begun is
// finished even when ctx ends: its outcome would stay open until another owner
// fences it.
func (s *session) publishAll(ctx context.Context) error {
	for b := range s.batches {
		select {
		case <-ctx.Done():
			return nil
		default:
		}
		if err := s.publish(ctx, b); err != nil {
			return err
		}
		s.done <- struct{}{} // has room: the reader hands out two at most
		select {
		case s.sent <- b:
		case <-s.stuck:
			return nil
		}
	}
	return nil
}

func (s *session) publish(ctx context.Context, b *batch) error {
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*s.relay.cfg.TransactionTimeout)
	defer cancel()
	s.mu.Lock()
	unsettled := slices.Clone(s.unsettled)
	s.mu.Unlock()
	if err := b.prepared.Publish(work, unsettled); err != nil {
		var refused *RefusedError
		if errors.As(err, &refused) {
			if refused.Together {
				s.suspect = b.rows[len(b.rows)-1].Number
			}
			err = errors.Join(err, s.reject(work, refused.Rows))
		}
		return err
	}
	s.progress = true
	s.mu.Lock()
	for i := range b.rows {
		s.unsettled = append(s.unsettled, b.rows[i].published())
	}
	s.mu.Unlock()
	s.relay.metrics.published.Add(float64(len(b.rows)))
	now := time.Now()
	for i := range b.rows {
		s.relay.metrics.delay.Observe(now.Sub(b.rows[i].At).Seconds())
	}
	return nil
}

// deleteAll deletes what has been published until there is no more.
func (s *session) deleteAll(ctx context.Context) error {
	for b := range s.sent {
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*s.relay.cfg.TransactionTimeout)
		err := s.forget(work, b)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) forget(ctx context.Context, b *batch) error {
	numbers := make([]int64, len(b.rows))
	for i := range b.rows {
		numbers[i] = b.rows[i].Number
	}
	s.mu.Lock()
	high := s.cursor.high
	s.mu.Unlock()
	xid, err := s.delete(ctx, numbers)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsettled = slices.Delete(s.unsettled, 0, len(b.rows)) // batches go in the order they came
	s.cursor.gone(numbers, high, xid)
	s.remember()
	return nil
}

// remember notes where the cursor is, for those who look from outside. The caller
// holds mu, or is alone yet.
func (s *session) remember() {
	s.floor.Store(s.cursor.floor())
	s.position.Store(s.cursor.position())
}

// delete returns the id of the transaction that deleted the rows.
func (p *publisher) delete(ctx context.Context, numbers []int64) (uint64, error) {
	var text string
	if err := p.relay.cfg.Pool.QueryRow(ctx, deleteSQL, p.shard, numbers).Scan(&text); err != nil {
		return 0, fmt.Errorf("delete published rows: %w", err)
	}
	xid, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("delete published rows: transaction id: %w", err)
	}
	return xid, nil
}

// reject moves rows to the dead letters.
func (p *publisher) reject(ctx context.Context, rows map[int64]error) error {
	for number, cause := range rows {
		if _, err := p.relay.cfg.Pool.Exec(ctx, rejectSQL, p.shard, number, cause.Error()); err != nil {
			return fmt.Errorf("move event to dead letters: %w", err)
		}
		p.relay.metrics.rejected.Inc()
		p.log.Error().Int64("row", number).Err(cause).Msg("the event can never be published; it is in the dead letters now")
	}
	return nil
}
