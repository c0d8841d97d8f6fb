package ingest

import (
	"context"
	"time"

	"millrace"
)

// Scheduler holds tasks back until their time.
type Scheduler interface {
	// Schedule makes tasks durable, all of them or none. Tasks of one time are
	// released in the order in which they are given. A task whose id is known stays
	// as it is.
	Schedule(ctx context.Context, tasks []millrace.ScheduledTask) error
}

// MaxRunAhead is how far ahead a task's run_at may be.
const MaxRunAhead = 366 * 24 * time.Hour

// admit refuses a task that the workers are too far behind to take. How far they
// are when a task's time comes, nobody knows.
func (s *Server) admit(t *taken) *Problem {
	if !t.runAt.IsZero() {
		return nil
	}
	return s.admission.admit(t.task.Priority)
}

// schedule stores tasks that are held back. It goes on when the sender goes away:
// they are counted all the same.
func (s *Server) schedule(ctx context.Context, tasks []millrace.ScheduledTask) *Problem {
	if s.cfg.Scheduler == nil {
		return storeNotConfigured.problem("a task with run_at is held back in a store, and none is configured; set %s", s.cfg.ReaderSetting)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ProduceTimeout)
	defer cancel()
	start := time.Now()
	err := s.cfg.Scheduler.Schedule(ctx, tasks)
	s.metrics.scheduleSeconds.Observe(time.Since(start).Seconds())
	if err == nil {
		return nil
	}
	s.failures.Warn().Err(err).Int("tasks", len(tasks)).Str("task", tasks[0].Task.ID).Msg("schedule tasks")
	if !millrace.IsUnavailable(err) && ctx.Err() == nil {
		return internalError.problem("the task could not be stored until its run_at")
	}
	return scheduleUnavailable.problem("not stored until its run_at, as far as is known").retry(2 * time.Second)
}
