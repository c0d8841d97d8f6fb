package statestore

import "sync"

// queue hands whatever is waiting to whoever is free: a batch grows while all
// are busy and is as small as one item when somebody is idle.
type queue[T any] struct {
	mu     sync.Mutex
	ready  sync.Cond
	items  []T
	closed bool
}

func newQueue[T any]() *queue[T] {
	q := &queue[T]{}
	q.ready.L = &q.mu
	return q
}

// push appends an item. It returns false once the queue is closed.
func (q *queue[T]) push(item T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.items = append(q.items, item)
	q.ready.Signal()
	return true
}

// take waits for items and removes up to limit of those that admit lets
// through, in order. It returns nil once the queue is closed and empty.
func (q *queue[T]) take(limit int, admit func(T) bool) []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) == 0 {
		if q.closed {
			return nil
		}
		q.ready.Wait()
	}
	var batch, rest []T
	for i, item := range q.items {
		if len(batch) == limit {
			rest = append(rest, q.items[i:]...)
			break
		}
		if admit(item) {
			batch = append(batch, item)
		} else {
			rest = append(rest, item)
		}
	}
	q.items = rest
	if len(rest) > 0 {
		q.ready.Signal()
	}
	return batch
}

func (q *queue[T]) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}
