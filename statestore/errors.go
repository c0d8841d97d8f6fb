package statestore

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace"
)

// refusedError marks an error that lies in what a turn wants to write, found
// before PostgreSQL was asked.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

// classify marks err as an outage unless PostgreSQL, or this package, refuses
// the data itself. The refused are few and named: a task whose effects are
// refused becomes a dead letter, and neither a changed password, a missing
// grant, a pooler that loses prepared statements nor a lock that took too long
// may do that to every task that comes along.
func classify(err error) error {
	if err == nil || refused(err) {
		return err
	}
	return millrace.UnavailableDependency(millrace.Postgres, err)
}

func refused(err error) bool {
	var own *refusedError
	if errors.As(err, &own) {
		return true
	}
	var connecting *pgconn.ConnectError
	var pgErr *pgconn.PgError
	if errors.As(err, &connecting) || !errors.As(err, &pgErr) || len(pgErr.Code) != 5 {
		return false // broken connection, time-out, no connection to be had
	}
	switch pgErr.Code[:2] {
	case "22", // data exception: text that is no UTF-8, broken JSON, numbers out of range
		"23", // integrity constraint violation
		"44", // check option of a view
		"54", // program limit exceeded: JSON too deep, a key too long for an index
		"P0": // raised by somebody's trigger
		return true
	}
	return pgErr.Code == "XX000" // internal error: among them a value too large to allocate
}
