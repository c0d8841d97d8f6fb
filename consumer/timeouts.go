package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"millrace"
)

// turnTimeout returns how long a turn of a task of the given type may take.
func (c *Config) turnTimeout(taskType string) time.Duration {
	if d, ok := c.TypeTimeouts[taskType]; ok {
		return d
	}
	return c.TurnTimeout
}

func (c *Config) validateTimeouts() error {
	var errs []error
	for taskType, d := range c.TypeTimeouts {
		if err := (&millrace.Task{ID: "-", Type: taskType}).Validate(); err != nil || taskType == "" {
			errs = append(errs, fmt.Errorf("TypeTimeouts: %q is no task type", taskType))
		}
		if d <= 0 {
			errs = append(errs, fmt.Errorf("TypeTimeouts: %s for %q: want a positive duration", d, taskType))
		}
	}
	return errors.Join(errs...)
}

// lateError is what a turn fails with whose handler returned nil after its time
// was up. What it collected is dropped: a handler that stops because its context
// has ended, and returns nil, has collected part of what it should have.
func (e *Engine) lateError(it *item) error {
	if d := it.task.Deadline; !d.IsZero() && !time.Now().Before(d) {
		return fmt.Errorf("the turn ended after the task's deadline: %w", context.DeadlineExceeded)
	}
	return fmt.Errorf("the turn took longer than the %s it has: %w", e.cfg.turnTimeout(it.task.Type), context.DeadlineExceeded)
}
