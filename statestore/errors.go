package statestore

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace"
)

// classify marks err as an outage when it says nothing about the data: the
// connection broke, the server is going away or this is no primary, a deadlock
// or serialisation failure asks for another try, or resources ran short.
// Everything else that PostgreSQL itself says will be said again.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if transient(err) {
		return millrace.Unavailable(err)
	}
	return err
}

func transient(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return true // broken connection, time-out, no connection to be had
	}
	switch pgErr.Code[:2] {
	case "08", // connection exception
		"40", // transaction rollback: serialisation failure, deadlock
		"53", // insufficient resources
		"57", // operator intervention: shutdown, crash, cannot connect now
		"58": // system error
		return true
	}
	return pgErr.Code == "25006" // read only: a standby, after a fail-over
}
