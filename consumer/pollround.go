package consumer

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// pollRound lets an assignment wait for what was fetched before it.
//
// Without that, what a poll brought can be handed in too late: the poll returns
// offsets 10 to 20 of a partition, the worker loses the partition and gets it
// back, at offset 5, before it has queued them. The new assignment would take 10
// for its first offset and what is fetched from 5 on for a repeat: the tasks in
// between would be passed over.
//
// Nothing of a new assignment is fetched before its callback has returned, so
// whatever a round brings that began before is not of it.
type pollRound struct {
	mu   sync.Mutex
	wake context.CancelFunc
	over chan struct{} // nil between rounds
}

// run polls once and hands in what there is.
func (p *pollRound) run(ctx context.Context, poll func(context.Context) kgo.Fetches, handIn func(kgo.Fetches)) {
	ctx, wake := context.WithTimeout(ctx, pollTick)
	defer wake()
	over := make(chan struct{})
	p.mu.Lock()
	p.wake, p.over = wake, over
	p.mu.Unlock()
	defer close(over)
	handIn(poll(ctx))
}

// settle ends the wait of a poll under way, and returns when what it brought has
// been handed in, or when ctx ends.
func (p *pollRound) settle(ctx context.Context) {
	p.mu.Lock()
	wake, over := p.wake, p.over
	p.mu.Unlock()
	if over == nil {
		return
	}
	wake()
	select {
	case <-over:
	case <-ctx.Done():
	}
}
