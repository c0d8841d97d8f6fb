package statestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"millrace"
)

func TestOnlyRefusedDataIsNoOutage(t *testing.T) {
	for code, refused := range map[string]bool{
		"22021": true,  // text that is no UTF-8
		"22P02": true,  // broken JSON
		"23514": true,  // check violation
		"54001": true,  // JSON too deep
		"P0001": true,  // a trigger's objection
		"XX000": true,  // a value too large to allocate
		"08P01": false, // protocol violation
		"0A000": false, // a cached plan that a migration has outdated
		"25006": false, // a standby
		"25P03": false, // idle in transaction for too long
		"25P04": false, // transaction took too long
		"26000": false, // a pooler lost the prepared statement
		"28P01": false, // the password has changed
		"40001": false, // serialisation failure
		"40P01": false, // deadlock
		"42501": false, // a missing grant
		"42P01": false, // a missing table
		"42P05": false, // a pooler kept somebody's prepared statement
		"53300": false, // too many connections
		"55P03": false, // lock_timeout
		"57014": false, // statement_timeout
		"57P01": false, // shutdown
		"XX001": false, // corrupted data
		"":      false,
	} {
		err := classify(fmt.Errorf("commit: %w", &pgconn.PgError{Code: code}))
		if millrace.IsUnavailable(err) == refused {
			t.Errorf("code %q: %v", code, err)
		}
	}
	for _, err := range []error{io.ErrUnexpectedEOF, context.DeadlineExceeded, errors.New("closed pool")} {
		if !millrace.IsUnavailable(classify(err)) {
			t.Errorf("%v is no outage", err)
		}
	}
	if err := classify(&refusedError{errors.New("no type")}); millrace.IsUnavailable(err) {
		t.Errorf("%v counts as an outage", err)
	}
	if classify(nil) != nil {
		t.Error("nil became an error")
	}
}
