package ingest

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"millrace"
)

// Announcer is told of tasks that have been accepted, so that a question for
// their status finds them queued. The tasks come without their payloads.
// An announcement may come after a worker has run the task, so it must not
// replace a status that is further on.
type Announcer interface {
	Queued(ctx context.Context, tasks []millrace.Task) error
}

const (
	maxAnnouncement     = 256
	announcementTimeout = 2 * time.Second
)

// announceQueue takes announcements off the request path. They are hints: when
// the announcer does not keep up, new ones are dropped and counted.
type announceQueue struct {
	announcer Announcer
	queue     chan millrace.Task
	metrics   *metrics
	failures  zerolog.Logger
}

func newAnnounceQueue(cfg *Config, m *metrics, failures zerolog.Logger) *announceQueue {
	return &announceQueue{
		announcer: cfg.Announcer,
		queue:     make(chan millrace.Task, cfg.AnnounceQueue),
		metrics:   m,
		failures:  failures,
	}
}

// add queues an announcement. It never blocks.
func (q *announceQueue) add(task millrace.Task) {
	if q.announcer == nil {
		return
	}
	task.Payload = nil // the queue is bounded by count
	select {
	case q.queue <- task:
	default:
		q.metrics.announcementsDropped.Inc()
	}
}

// run passes announcements on until last is closed, which means that no more
// come; then it passes on what is left.
func (q *announceQueue) run(ctx context.Context, last <-chan struct{}) {
	if q.announcer == nil {
		return
	}
	// What was accepted while a stop drains is announced as well.
	ctx = context.WithoutCancel(ctx)
	for {
		select {
		case task := <-q.queue:
			q.announce(ctx, q.gather(task))
		case <-last:
			for {
				select {
				case task := <-q.queue:
					if !q.announce(ctx, q.gather(task)) {
						return // an announcer that fails must not hold up the stop
					}
				default:
					return
				}
			}
		}
	}
}

func (q *announceQueue) gather(first millrace.Task) []millrace.Task {
	tasks := []millrace.Task{first}
	for len(tasks) < maxAnnouncement {
		select {
		case task := <-q.queue:
			tasks = append(tasks, task)
		default:
			return tasks
		}
	}
	return tasks
}

func (q *announceQueue) announce(ctx context.Context, tasks []millrace.Task) bool {
	ctx, cancel := context.WithTimeout(ctx, announcementTimeout)
	defer cancel()
	if err := q.announcer.Queued(ctx, tasks); err != nil {
		q.metrics.announcementsFailed.Add(float64(len(tasks)))
		q.failures.Warn().Err(err).Int("tasks", len(tasks)).Msg("announce queued tasks")
		return false
	}
	return true
}
