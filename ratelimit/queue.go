package ratelimit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// maxAsking bounds how many requests of a queue are asked for at once.
const maxAsking = 32

// queue orders the requests of this process that need the same buckets. As long
// as nobody is refused, requests ask side by side, as they come. Once one is,
// the head alone asks, or sleeps until the time it was told to ask again.
type queue struct {
	name string
	refs int // guarded by Limiter.mu

	mu      sync.Mutex
	arrived uint64
	waiting []*waiter // by rank, then arrival
	refused int       // how many of waiting have been refused
}

type waiter struct {
	rank    int
	arrived uint64
	// wake tells the waiter to look at its queue again. Capacity 1: one signal
	// stands for any number.
	wake   chan struct{}
	asking bool
	// blocker is what refused the waiter last, "" if nothing has.
	blocker string
	// notBefore is when asking makes sense.
	notBefore time.Time
	// err ends the wait.
	err error
}

// verdict is what Redis decided on a request.
type verdict struct {
	granted bool
	// retry is how long to wait before asking again.
	retry time.Duration
	// blocker names what refused the request.
	blocker string
}

func (l *Limiter) enter(account, name string) *queue {
	l.mu.Lock()
	defer l.mu.Unlock()
	queues := l.queues[account]
	if queues == nil {
		queues = make(map[string]*queue)
		l.queues[account] = queues
	}
	q := queues[name]
	if q == nil {
		q = &queue{name: name}
		queues[name] = q
	}
	q.refs++
	return q
}

func (l *Limiter) leave(account string, q *queue) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.refs--; q.refs > 0 {
		return
	}
	delete(l.queues[account], q.name)
	if len(l.queues[account]) == 0 {
		delete(l.queues, account)
	}
}

// wake makes those heads of an account's queues ask at once that something
// given back may help.
func (l *Limiter) wake(account string, helps func(blocker string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.queues[account] {
		q.mu.Lock()
		if len(q.waiting) > 0 && helps(q.waiting[0].blocker) {
			q.waiting[0].notBefore = time.Time{}
			q.wakeNext()
		}
		q.mu.Unlock()
	}
}

func (q *queue) arrive(rank int) *waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.arrived++
	w := &waiter{rank: rank, arrived: q.arrived, wake: make(chan struct{}, 1)}
	at, _ := slices.BinarySearchFunc(q.waiting, w, func(a, b *waiter) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return int(a.arrived) - int(b.arrived) //nolint:gosec // counts of one process
	})
	q.waiting = slices.Insert(q.waiting, at, w)
	return w
}

// wait returns nil once ask was granted to w. It removes w from the queue.
func (q *queue) wait(ctx context.Context, w *waiter, ask func(context.Context) (verdict, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		q.mu.Lock()
		if w.err != nil {
			q.remove(w)
			q.mu.Unlock()
			return w.err
		}
		next := q.next() == w
		delay := time.Until(w.notBefore)
		if next && delay <= 0 {
			w.asking = true
			q.wakeNext()
			q.mu.Unlock()
			done, err := q.asked(ctx, w, ask)
			if done {
				return err
			}
			continue
		}
		q.mu.Unlock()

		var due <-chan time.Time
		if next {
			timer.Reset(delay)
			due = timer.C
		}
		select {
		case <-due:
		case <-w.wake:
		case <-ctx.Done():
			q.mu.Lock()
			q.remove(w)
			q.wakeNext()
			q.mu.Unlock()
			return ctx.Err()
		}
	}
}

// asked asks for w, which has made itself the one that asks.
func (q *queue) asked(ctx context.Context, w *waiter, ask func(context.Context) (verdict, error)) (done bool, err error) {
	v, err := ask(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	w.asking = false
	defer q.wakeNext()
	switch {
	case err == nil && v.granted:
		q.remove(w)
		return true, nil
	case err == nil:
		if w.blocker == "" {
			q.refused++
		}
		w.blocker = v.blocker
		w.notBefore = time.Now().Add(v.retry)
		return false, nil
	case errors.Is(err, ErrUnavailable):
		// The others would find the same, one after the other.
		for _, other := range q.waiting {
			other.err = err
			other.signal()
		}
	}
	q.remove(w)
	return true, err
}

// next returns the waiter that may ask now, nil if none may.
func (q *queue) next() *waiter {
	for i, w := range q.waiting {
		switch {
		case !w.asking:
			return w
		case q.refused > 0 || i+1 == maxAsking:
			return nil
		}
	}
	return nil
}

func (q *queue) remove(w *waiter) {
	i := slices.Index(q.waiting, w)
	q.waiting = slices.Delete(q.waiting, i, i+1)
	if w.blocker != "" {
		q.refused--
	}
}

func (q *queue) wakeNext() {
	if w := q.next(); w != nil {
		w.signal()
	}
}

func (w *waiter) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
