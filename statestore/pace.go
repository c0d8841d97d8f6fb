package statestore

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// batchTook is what a batch is to take at most. It bounds how long its transaction
	// holds back vacuum, and whoever waits for one of its rows.
	batchTook    = 100 * time.Millisecond
	batchTimeout = 10 * time.Second
	firstBatch   = 500
	largestBatch = 5000
)

// batchLockSQL: whoever holds a row for longer, as a redrive does, is not waited
// for with a transaction open.
const batchLockSQL = `SELECT set_config('lock_timeout', '2s', true), set_config('enable_seqscan', 'off', true)`

// pace adapts the size of batches to how long they take, and rests between them as
// long as they took: deleting gets half a connection at most, however much there
// is to delete.
type pace struct{ rows int }

func newPace() *pace { return &pace{rows: firstBatch} }

// begin returns what a batch starts with.
func (p *pace) begin() *pgx.Batch {
	batch := &pgx.Batch{}
	batch.Queue(batchLockSQL)
	return batch
}

// run runs a batch as a transaction of its own.
func (p *pace) run(ctx context.Context, pool *pgxpool.Pool, batch *pgx.Batch) error {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	err := pool.SendBatch(limited, batch).Close()
	took := time.Since(began)
	switch {
	case err != nil || took > batchTook:
		p.rows = max(p.rows/2, 1)
	case took < batchTook/4:
		p.rows = min(p.rows*2, largestBatch)
	}
	if err != nil {
		return classify(fmt.Errorf("batch: %w", err))
	}
	return rest(ctx, took)
}

// rest waits unless ctx ends before.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
