package statestore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"
)

var (
	//go:embed sql/migrate_begin.sql
	migrateBeginSQL string
	//go:embed sql/migrate_holder.sql
	migrateHolderSQL string
	//go:embed sql/migrate_invalid.sql
	migrateInvalidSQL string
	//go:embed sql/migrate_version.sql
	migrateVersionSQL string
)

// Migrator brings the schema of a database up to date while workers use it. Zero
// values mean the defaults.
//
// A migration and its place in schema_version are one transaction, which holds an
// advisory lock until it ends: of several migrators one works, and one that is
// killed leaves nothing behind. Nothing depends on two transactions meeting the
// same connection of the server, so that a pooler may stand in between.
//
// Whoever changes a table needs it for itself for a moment, and everybody who comes
// while that is waited for waits as well. So a migration gives up after half a
// second, lets the workers through and tries again.
type Migrator struct {
	// Files are the migrations. Default: those of this program.
	Files fs.FS
	// Patience is how long a migration is tried again while others hold what it
	// needs. Default 10 min.
	Patience time.Duration
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
}

// Migrate brings the schema up to date and returns the migrations it ran.
func Migrate(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	return Migrator{}.Run(ctx, conn)
}

// Run brings the schema up to date and returns the migrations it ran, also those
// before one that failed. Migrations only go forward: a database that is ahead is
// left as it is, with [ErrSchemaTooNew] if this program cannot work with it.
func (m Migrator) Run(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	if m.Patience == 0 {
		m.Patience = 10 * time.Minute
	}
	if m.Logger == nil {
		nop := zerolog.Nop()
		m.Logger = &nop
	}
	schema, err := m.Schema(ctx, conn)
	if err != nil {
		return nil, err
	}
	if len(schema.Pending) == 0 {
		return nil, schema.Check()
	}
	all, err := m.migrations()
	if err != nil {
		return nil, err
	}
	var ran []Migration
	for {
		next, err := m.patiently(ctx, conn, all)
		if err != nil {
			return ran, fmt.Errorf("migrate: %w", err)
		}
		if next == nil {
			return ran, nil
		}
		ran = append(ran, *next)
	}
}

// errBusy says that another migrator is at work.
var errBusy = errors.New("another migration is running")

const (
	firstWait = 500 * time.Millisecond
	maxWait   = 15 * time.Second
)

// patiently runs the next migration as soon as nobody is in its way, and returns
// it; nil when there is none left.
func (m Migrator) patiently(ctx context.Context, conn *pgx.Conn, all []Migration) (*Migration, error) {
	began := time.Now()
	for wait := firstWait; ; wait = min(2*wait, maxWait) {
		next, err := m.next(ctx, conn, all)
		if !errors.Is(err, errBusy) && !lockWithheld(err) {
			return next, err
		}
		log := m.Logger.Warn().Err(err).Dur("retry_in", wait)
		if !errors.Is(err, errBusy) {
			holder := m.holder(ctx, conn)
			if time.Since(began) >= m.Patience {
				return nil, fmt.Errorf("given up after %s, %s: %w", m.Patience, holder, err)
			}
			log = log.Str("cause", holder)
		}
		log.Msg("a migration has to wait")
		t := time.NewTimer(wait/2 + rand.N(wait/2+1)) //nolint:gosec // no secret
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
	}
}

// lockWithheld reports whether a statement has failed for what others hold.
func lockWithheld(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && slices.Contains([]string{
		"55P03", // lock_timeout
		"40P01", // deadlock
	}, pgErr.Code)
}

// holder says which transaction has been holding tables of the schema longest.
func (m Migrator) holder(ctx context.Context, conn *pgx.Conn) string {
	var (
		pid         int
		name, state string
		seconds     float64
	)
	err := conn.QueryRow(ctx, migrateHolderSQL, pgx.QueryExecModeSimpleProtocol).Scan(&pid, &name, &state, &seconds)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "no single transaction has been in the way for long"
	case err != nil:
		return "who is in the way cannot be told: " + err.Error()
	}
	return fmt.Sprintf("a transaction of %.0f s holds tables of the schema (pid %d, application %q, %s)", seconds, pid, name, state)
}

// next runs the next migration and returns it; nil when there is none left.
func (m Migrator) next(ctx context.Context, conn *pgx.Conn, all []Migration) (next *Migration, err error) {
	// Without a transaction of its own, a migration works on conn while the
	// transaction on another connection holds the lock.
	locked := conn
	if i, err := m.peek(ctx, conn); err != nil {
		return nil, err
	} else if i < len(all) && all[i].noTransaction {
		if locked, err = pgx.ConnectConfig(ctx, conn.Config()); err != nil {
			return nil, fmt.Errorf("connect for the lock: %w", err)
		}
		defer func() { _ = locked.Close(context.WithoutCancel(ctx)) }()
	}
	err = pgx.BeginFunc(ctx, locked, func(tx pgx.Tx) error {
		// All with the simple protocol: an extended query leaves its portal open, and
		// with it a snapshot that CREATE INDEX CONCURRENTLY would wait for, in vain.
		var free bool
		if _, err := tx.Exec(ctx, migrateBeginSQL); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock(hashtextextended('millrace.schema_version', 0))`, pgx.QueryExecModeSimpleProtocol).Scan(&free)
		if err == nil && !free {
			err = errBusy
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, migrateVersionSQL); err != nil {
			return fmt.Errorf("create schema millrace: %w", err)
		}
		// Read under the lock: another migrator may just have ended.
		var at Schema
		if err := readVersion(ctx, tx, &at); err != nil || int(at.Version) >= len(all) {
			return err
		}
		one := &all[at.Version]
		switch {
		case !one.noTransaction:
			_, err = tx.Exec(ctx, one.sql)
		case locked == conn:
			return errBusy // it has come up only now; begin anew with a connection for the lock
		default:
			err = oneByOne(ctx, conn, one)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", one.Name, err)
		}
		_, err = tx.Exec(ctx, `UPDATE millrace.schema_version SET version = $1, oldest_program = GREATEST(oldest_program, $2)`,
			pgx.QueryExecModeSimpleProtocol, one.Version, one.Oldest)
		next = one
		return err
	})
	if err != nil {
		return nil, err
	}
	return next, nil
}

// peek returns how many migrations the database has.
func (m Migrator) peek(ctx context.Context, conn *pgx.Conn) (int, error) {
	schema, err := m.Schema(ctx, conn)
	return int(schema.Version), err
}

// oneByOne runs a migration without a transaction. It may have been run in part
// before: an index whose making was cut short is there, but of no use.
func oneByOne(ctx context.Context, conn *pgx.Conn, m *Migration) error {
	rows, err := conn.Query(ctx, migrateInvalidSQL, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return err
	}
	invalid, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, index := range invalid {
		if _, err := conn.Exec(ctx, `DROP INDEX CONCURRENTLY IF EXISTS `+index); err != nil {
			return err
		}
	}
	for _, statement := range m.statements() {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
