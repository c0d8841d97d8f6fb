package ratelimit

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Grant is the permission to send one request. It is ended once, by the first
// of Settle, Release and Cancel; the others then do nothing.
type Grant struct {
	limiter  *Limiter
	account  string
	id       string
	lease    time.Duration
	reserved Usage
	buckets  []bucket
	at       int64 // ms, by Redis
	ended    atomic.Bool
}

// Settle ends the grant and replaces what it reserved by what was used, as of
// the time of the grant. When it fails, the reservation stands until it ages
// out.
func (g *Grant) Settle(ctx context.Context, used Usage) error {
	return g.end(ctx, "settle", func(b *bucket) int64 { return max(b.dim.charge(used), 0) - b.charge })
}

// Release ends the grant of a request with unknown usage: what it reserved
// counts as used.
func (g *Grant) Release(ctx context.Context) error {
	return g.end(ctx, "release", func(*bucket) int64 { return 0 })
}

// Cancel ends the grant of a request that was not sent: nothing was used.
func (g *Grant) Cancel(ctx context.Context) error {
	return g.end(ctx, "cancel", func(b *bucket) int64 { return -b.charge })
}

// end outlives ctx's end by one call's timeout, because a caller that is told
// to stop still has to give back what it holds.
func (g *Grant) end(ctx context.Context, operation string, change func(*bucket) int64) error {
	if len(g.buckets) == 0 || g.ended.Swap(true) {
		return nil
	}
	var heldFreed, rateFreed bool
	changes := make([]int64, len(g.buckets))
	for i := range g.buckets {
		changes[i] = change(&g.buckets[i])
		if g.buckets[i].dim.held {
			heldFreed = true
		} else if changes[i] < 0 {
			rateFreed = true
		}
	}
	if err := g.limiter.settle(context.WithoutCancel(ctx), g, changes); err != nil {
		return fmt.Errorf("%s grant of account %q: %w", operation, g.account, err)
	}
	if heldFreed || rateFreed {
		g.limiter.wake(g.account, func(blocker string) bool {
			switch blocker {
			case "", blockerFrozen, blockerLostLedgers:
				return false
			case dimConcurrency:
				return heldFreed
			}
			return rateFreed
		})
	}
	return nil
}
