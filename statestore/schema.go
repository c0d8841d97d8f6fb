package statestore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed migrations/*.sql
var embedded embed.FS

// Errors of [Schema.Check], wrapped with the versions that they are about.
var (
	ErrSchemaOutdated = errors.New("the database is behind this program; run `millrace migrate`")
	ErrSchemaTooNew   = errors.New("the database has changed in a way that this program does not know; run a newer millrace")
)

// Migration is one step of the schema: the file NNN_name.sql. Lines of it that
// begin with "-- millrace:" say how it may be run:
//
//	-- millrace:oldest N          programs of schema version N and later work with it
//	-- millrace:no-transaction    its statements run one by one, each again after a failure
//	-- millrace:safe REASON       why it does not disturb workers although it looks like it
//
// A file that names no oldest program is taken to work with none before its own.
type Migration struct {
	Version int32
	// Name is the file's.
	Name string
	// Oldest is the schema version of the oldest programs that work on a database
	// with this migration.
	Oldest int32

	sql           string
	noTransaction bool
	safe          string
}

// Schema is how a database stands to a program.
type Schema struct {
	// Version is the last migration that the database has; 0 is none.
	Version int32
	// Oldest is the schema version of the oldest programs that work with the
	// database.
	Oldest int32
	// Wanted is the last migration that the program brings.
	Wanted int32
	// Pending are the migrations that the database lacks.
	Pending []Migration
}

// Check returns [ErrSchemaOutdated] or [ErrSchemaTooNew], wrapped, when the
// program cannot work with the database.
func (s *Schema) Check() error {
	switch {
	case s.Version < s.Wanted:
		return fmt.Errorf("the schema has version %d, this program needs %d: %w", s.Version, s.Wanted, ErrSchemaOutdated)
	case s.Wanted < s.Oldest:
		return fmt.Errorf("the schema has version %d and is for programs of version %d or later, this one is of %d: %w",
			s.Version, s.Oldest, s.Wanted, ErrSchemaTooNew)
	}
	return nil
}

// Schema says how the database stands to this program. It only reads: the right
// to use the schema and to select from schema_version is all it needs.
func (m Migrator) Schema(ctx context.Context, conn *pgx.Conn) (Schema, error) {
	all, err := m.migrations()
	if err != nil {
		return Schema{}, err
	}
	s := Schema{Wanted: int32(len(all))} //nolint:gosec // a handful of files
	var exists bool
	err = conn.QueryRow(ctx, `SELECT to_regclass('millrace.schema_version') IS NOT NULL`, pgx.QueryExecModeSimpleProtocol).Scan(&exists)
	if err == nil && exists {
		err = readVersion(ctx, conn, &s)
	}
	if err != nil {
		return Schema{}, fmt.Errorf("read schema version: %w", err)
	}
	s.Pending = all[min(s.Version, s.Wanted):]
	return s, nil
}

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readVersion reads the row of schema_version, with or without the column
// oldest_program: the row as JSON has what there is.
func readVersion(ctx context.Context, db rowQuerier, s *Schema) error {
	return db.QueryRow(ctx, `SELECT version, COALESCE((to_jsonb(s) ->> 'oldest_program')::integer, 1) FROM millrace.schema_version AS s`,
		pgx.QueryExecModeSimpleProtocol).Scan(&s.Version, &s.Oldest)
}

// CheckSchema returns [ErrSchemaOutdated] or [ErrSchemaTooNew], wrapped, unless
// this program can work with the database.
func CheckSchema(ctx context.Context, conn *pgx.Conn) error {
	s, err := Migrator{}.Schema(ctx, conn)
	if err != nil {
		return err
	}
	return s.Check()
}

// migrations returns all migrations in order.
func (m Migrator) migrations() ([]Migration, error) {
	files := m.Files
	if files == nil {
		var err error
		if files, err = fs.Sub(embedded, "migrations"); err != nil {
			return nil, err
		}
	}
	names, err := fs.Glob(files, "*.sql") // sorted
	if err != nil {
		return nil, err
	}
	all := make([]Migration, len(names))
	for i, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		if all[i], err = parseMigration(name, string(text)); err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		if int(all[i].Version) != i+1 {
			return nil, fmt.Errorf("migration %s: want number %d, for numbers have neither gaps nor repeats", name, i+1)
		}
	}
	return all, nil
}

var (
	migrationName = regexp.MustCompile(`^([0-9]{3})_[a-z0-9_]+\.sql$`)
	directive     = regexp.MustCompile(`(?m)^-- millrace:(\S*) *(.*)$`)
)

func parseMigration(name, text string) (Migration, error) {
	match := migrationName.FindStringSubmatch(path.Base(name))
	if match == nil {
		return Migration{}, errors.New("want a name like 001_words.sql")
	}
	version, err := strconv.ParseInt(match[1], 10, 32)
	if err != nil {
		return Migration{}, err
	}
	m := Migration{Version: int32(version), Name: name, Oldest: int32(version), sql: text}
	for _, d := range directive.FindAllStringSubmatch(text, -1) {
		word, rest := d[1], strings.TrimSpace(d[2])
		switch {
		case word == "oldest":
			oldest, err := strconv.ParseInt(rest, 10, 32)
			if err != nil || oldest < 1 || oldest > version {
				return Migration{}, fmt.Errorf("oldest %q: want 1 to %d", rest, version)
			}
			m.Oldest = int32(oldest)
		case word == "no-transaction" && rest == "":
			m.noTransaction = true
		case word == "safe" && rest != "":
			m.safe = rest
		default:
			return Migration{}, fmt.Errorf("what does %q mean?", d[0])
		}
	}
	return m, nil
}

// statements returns what a migration without a transaction runs, one by one. A
// statement ends with the line that ends in a semicolon.
func (m *Migration) statements() []string {
	var (
		all  []string
		open strings.Builder
	)
	for line := range strings.Lines(m.sql) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--") {
			continue
		}
		open.WriteString(line + "\n")
		if strings.HasSuffix(line, ";") {
			all = append(all, open.String())
			open.Reset()
		}
	}
	if open.Len() > 0 {
		all = append(all, open.String())
	}
	return all
}
