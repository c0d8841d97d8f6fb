package millrace

import (
	"errors"
	"fmt"
	"time"
)

// Handlers steer what happens to a failed task by what they return. A plain
// error is retried with backoff until the attempts are spent; Permanent and
// RetryAfter say otherwise.

// PermanentError marks an error that no retry will cure.
type PermanentError struct {
	// Err is the cause.
	Err error
}

// Permanent returns an error that makes the task a dead letter at once. A nil
// err gives nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &PermanentError{Err: err}
}

func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *PermanentError) Unwrap() error { return e.Err }

// RetryAfterError asks for the next attempt at a time of the handler's choice.
type RetryAfterError struct {
	// Delay is how long to wait at least.
	Delay time.Duration
	// Err is the cause.
	Err error
}

// RetryAfter returns an error that makes the worker wait for delay, instead of
// its own backoff, before the next attempt: at most an hour, and not beyond the
// task's deadline. The attempt counts. A nil err gives
// nil.
func RetryAfter(delay time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return &RetryAfterError{Delay: delay, Err: err}
}

func (e *RetryAfterError) Error() string {
	return fmt.Sprintf("%v (retry after %s)", e.Err, e.Delay)
}

// Unwrap returns the cause.
func (e *RetryAfterError) Unwrap() error { return e.Err }

// IsPermanent reports whether err, or anything that it wraps, is permanent.
func IsPermanent(err error) bool {
	var p *PermanentError
	return errors.As(err, &p)
}

// The dependencies that no turn can do without, as [UnavailableError] names them.
const (
	Kafka    = "kafka"
	Postgres = "postgres"
	Redis    = "redis"
)

// UnavailableError marks an error that is a dependency's outage, not the task's
// fault.
type UnavailableError struct {
	// Dependency names what is out: [Kafka], [Postgres], [Redis], or whatever else
	// turns call, such as "llm/openai". Empty: nobody knows.
	Dependency string
	// Err is the cause.
	Err error
}

// Unavailable returns an error that makes the worker try again later without
// counting an attempt. A nil err gives nil.
func Unavailable(err error) error { return UnavailableDependency("", err) }

// UnavailableDependency is [Unavailable] for a dependency that can be named. After
// a few such failures in a row the worker holds all tasks of the same type, lets
// one at a time through to see whether the dependency answers again, and goes on
// with tasks of other types meanwhile.
//
// Whoever names a dependency calls [Turn.Reached] when it has answered. Only then
// can a task that fails while others get through be told from an outage: its
// failures count as attempts.
func UnavailableDependency(dependency string, err error) error {
	if err == nil {
		return nil
	}
	return &UnavailableError{Dependency: dependency, Err: err}
}

func (e *UnavailableError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// IsUnavailable reports whether err, or anything that it wraps, is an outage.
func IsUnavailable(err error) bool {
	var u *UnavailableError
	return errors.As(err, &u)
}

// DependencyOf returns the dependency whose outage err is, or anything that it
// wraps. Empty: it is none, or not named.
func DependencyOf(err error) string {
	var u *UnavailableError
	for errors.As(err, &u) {
		if u.Dependency != "" {
			return u.Dependency
		}
		err = u.Err
	}
	return ""
}
