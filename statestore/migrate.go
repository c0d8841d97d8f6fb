package statestore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
)

//go:embed migrations/*.sql
var migrations embed.FS

const versionTable = "millrace.schema_version"

// ErrSchemaOutdated says that the database lacks migrations that this program
// needs.
var ErrSchemaOutdated = errors.New("the database schema is older than this program; run `millrace migrate`")

// Migration is one step of the schema.
type Migration struct {
	Version int32
	Name    string
}

// Migrate brings the schema up to date and returns the migrations it ran.
// Several callers at once are safe: they queue behind an advisory lock.
// Migrations only go forward.
func Migrate(ctx context.Context, conn *pgx.Conn) ([]Migration, error) {
	if err := createSchema(ctx, conn); err != nil {
		return nil, fmt.Errorf("create schema millrace: %w", err)
	}
	m, err := newMigrator(ctx, conn)
	if err != nil {
		return nil, err
	}
	var ran []Migration
	m.OnStart = func(version int32, name, _, _ string) {
		ran = append(ran, Migration{Version: version, Name: name})
	}
	if err := m.Migrate(ctx); err != nil {
		var bad migrate.BadVersionError
		if errors.As(err, &bad) {
			// A newer program has migrated already. Migrations are made so that the
			// version before them still works.
			return nil, nil
		}
		return nil, fmt.Errorf("migrate: %w", err)
	}
	return ran, nil
}

// createSchema asks first: CREATE SCHEMA IF NOT EXISTS wants the right to create
// one even when it is there.
func createSchema(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regnamespace('millrace') IS NOT NULL`).Scan(&exists); err != nil || exists {
		return err
	}
	_, err := conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS millrace`)
	// IF NOT EXISTS does not keep two concurrent creators from colliding.
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "23505" {
		return nil
	}
	return err
}

// SchemaVersion returns the version that the database has and the one that this
// program brings.
func SchemaVersion(ctx context.Context, conn *pgx.Conn) (current, wanted int32, err error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return 0, 0, fmt.Errorf("list migrations: %w", err)
	}
	wanted = int32(len(names)) //nolint:gosec // a handful of files
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, versionTable).Scan(&exists); err != nil {
		return 0, wanted, fmt.Errorf("look up schema version: %w", err)
	}
	if !exists {
		return 0, wanted, nil
	}
	if err := conn.QueryRow(ctx, `SELECT version FROM `+versionTable).Scan(&current); err != nil {
		return 0, wanted, fmt.Errorf("read schema version: %w", err)
	}
	return current, wanted, nil
}

// CheckSchema returns [ErrSchemaOutdated], wrapped, unless the database has all
// migrations that this program needs.
func CheckSchema(ctx context.Context, conn *pgx.Conn) error {
	current, wanted, err := SchemaVersion(ctx, conn)
	if err != nil {
		return err
	}
	if current < wanted {
		return fmt.Errorf("schema version %d, want %d: %w", current, wanted, ErrSchemaOutdated)
	}
	return nil
}

func newMigrator(ctx context.Context, conn *pgx.Conn) (*migrate.Migrator, error) {
	m, err := migrate.NewMigrator(ctx, conn, versionTable)
	if err != nil {
		return nil, fmt.Errorf("prepare migrations: %w", err)
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("load migrations: %w", err)
	}
	if err := m.LoadMigrations(files); err != nil {
		return nil, fmt.Errorf("load migrations: %w", err)
	}
	return m, nil
}
