//go:build integration

package statestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"millrace"
	"millrace/internal/testenv"
)

// withMigrations returns this program's migrations and more behind them.
func withMigrations(t *testing.T, more ...string) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(embedded, "migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := embedded.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(name, "migrations/")] = &fstest.MapFile{Data: text}
	}
	for i, sql := range more {
		files[fmt.Sprintf("%03d_more.sql", len(names)+1+i)] = &fstest.MapFile{Data: []byte(sql)}
	}
	return files
}

func connect(t *testing.T, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func onConn(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestConcurrentMigrationsRunOnce(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	files := withMigrations(t,
		"CREATE TABLE millrace.more (a integer);",
		"-- millrace:no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS more_a ON millrace.more (a);",
		"ALTER TABLE millrace.more ADD b integer;")
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		ran = make(map[string]int)
	)
	for range 3 {
		conn := connect(t, pool)
		wg.Go(func() {
			if err := CheckSchema(t.Context(), conn); err != nil && !errors.Is(err, ErrSchemaOutdated) && !errors.Is(err, ErrSchemaTooNew) {
				t.Errorf("check: %v", err)
			}
			done, err := Migrator{Files: files}.Run(t.Context(), conn)
			if err != nil {
				t.Error(err)
			}
			schema, err := Migrator{Files: files}.Schema(t.Context(), conn)
			if err != nil || len(schema.Pending) > 0 || int(schema.Version) != len(files) {
				t.Errorf("afterwards %+v, %v", schema, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, m := range done {
				ran[m.Name]++
			}
		})
	}
	wg.Wait()
	for name := range files {
		if ran[name] != 1 {
			t.Errorf("%s ran %d times", name, ran[name])
		}
	}
}

func TestProgramKnowsWhichSchemasItWorksWith(t *testing.T) {
	pool := newDatabase(t)
	conn := connect(t, pool)
	own, err := Migrator{}.Schema(t.Context(), conn)
	if err != nil || own.Check() != nil || own.Version != own.Wanted || len(own.Pending) != 0 {
		t.Fatalf("after all migrations: %+v, %v", own, err)
	}
	run := func(more ...string) {
		t.Helper()
		if _, err := (Migrator{Files: withMigrations(t, more...)}).Run(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
	}
	additive := fmt.Sprintf("-- millrace:oldest %d\nALTER TABLE millrace.relays ADD more integer;", own.Version)
	newer := Migrator{Files: withMigrations(t, additive)}
	if s, err := newer.Schema(t.Context(), conn); err != nil || !errors.Is(s.Check(), ErrSchemaOutdated) || len(s.Pending) != 1 {
		t.Errorf("to a newer program: %+v, %v", s, err)
	}
	run(additive)
	if err := CheckSchema(t.Context(), conn); err != nil {
		t.Errorf("ahead by what it works with: %v", err)
	}
	if ran, err := Migrate(t.Context(), conn); err != nil || len(ran) != 0 {
		t.Errorf("a migration by the program that is behind: %v, %v", ran, err)
	}
	run(additive, "ALTER TABLE millrace.relays DROP more;")
	if err := CheckSchema(t.Context(), conn); !errors.Is(err, ErrSchemaTooNew) {
		t.Errorf("ahead by what it does not work with: %v", err)
	}
	if _, err := Migrate(t.Context(), conn); !errors.Is(err, ErrSchemaTooNew) {
		t.Errorf("a migration by a program that cannot work with the database: %v", err)
	}
	// What needs but the one before does not make the database fit for older ones again.
	run(additive, "ALTER TABLE millrace.relays DROP more;", additive)
	if err := CheckSchema(t.Context(), conn); !errors.Is(err, ErrSchemaTooNew) {
		t.Errorf("ahead by an additive migration after another: %v", err)
	}
}

func TestCheckOnlyReads(t *testing.T) {
	pool := newDatabase(t)
	conn := connect(t, pool)
	role := pgx.Identifier{"reader_" + strings.ReplaceAll(newID(), "-", "")}.Sanitize()
	onConn(t, conn, "CREATE ROLE "+role)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := pool.Exec(ctx, "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Error(err)
		}
	})
	onConn(t, conn, "GRANT USAGE ON SCHEMA millrace TO "+role+"; GRANT SELECT ON millrace.schema_version TO "+role)
	onConn(t, conn, "SET ROLE "+role+"; SET default_transaction_read_only = on")
	newer := Migrator{Files: withMigrations(t, "ALTER TABLE millrace.relays ADD more integer;")}
	s, err := newer.Schema(t.Context(), conn)
	if err != nil || len(s.Pending) != 1 || !strings.HasSuffix(s.Pending[0].Name, "_more.sql") {
		t.Errorf("%+v, %v", s, err)
	}
	if ran, err := Migrate(t.Context(), conn); err != nil || len(ran) != 0 {
		t.Errorf("with nothing to do: %v, %v", ran, err)
	}
	// A database from before the column.
	onConn(t, conn, "RESET ROLE; SET default_transaction_read_only = off")
	onConn(t, conn, "ALTER TABLE millrace.schema_version DROP oldest_program")
	onConn(t, conn, "SET ROLE "+role)
	if err := CheckSchema(t.Context(), conn); err != nil {
		t.Errorf("without the column: %v", err)
	}
}

// A transaction that has only read a table keeps it from being changed. Whoever
// waited for it in a queue would keep all commits waiting behind it.
func TestMigrationGivesWayToLongTransactions(t *testing.T) {
	s := newStore(t)
	pool := s.cfg.Pool
	holder, conn := connect(t, pool), connect(t, pool)
	onConn(t, holder, "SET application_name = 'a long report'; BEGIN; SELECT FROM millrace.messages")
	var log bytes.Buffer
	logger := zerolog.New(&log)
	m := Migrator{
		Files:    withMigrations(t, "CREATE TABLE millrace.more (a integer);\nALTER TABLE millrace.messages ADD more integer;"),
		Patience: time.Second, Logger: &logger,
	}
	ended := make(chan error, 1)
	go func() {
		_, err := m.Run(t.Context(), conn)
		ended <- err
	}()
	// Commits come through, between the tries and before the end of the report.
	conv := completion("t0", mustOpen(t, s, "conv"))
	for i := 0; ; i++ {
		select {
		case err := <-ended:
			if i == 0 {
				t.Error("no commit came through")
			}
			if err == nil || !strings.Contains(err.Error(), `application "a long report"`) {
				t.Errorf("gave up with: %v", err)
			}
			if !strings.Contains(log.String(), "a migration has to wait") {
				t.Errorf("the log says %s", log.String())
			}
			if n := count(t, pool, `SELECT count(*) FROM pg_class WHERE oid = to_regclass('millrace.more')`); n != 0 {
				t.Error("half of the migration was left behind")
			}
			onConn(t, holder, "COMMIT")
			if ran, err := m.Run(t.Context(), conn); err != nil || len(ran) != 1 {
				t.Errorf("when the report had ended: %v, %v", ran, err)
			}
			mustCommit(t, s, completion("last", mustOpen(t, s, "conv")), millrace.Committed)
			return
		default:
		}
		mustCommit(t, s, conv, millrace.Committed)
		conv = completion(fmt.Sprintf("t%d", i+1), mustOpen(t, s, "conv"))
	}
}

func TestKilledMigrationLeavesNothing(t *testing.T) {
	pool := newDatabase(t)
	victim := connect(t, pool)
	files := withMigrations(t, "CREATE TABLE millrace.more (a integer);\nSELECT pg_sleep(CASE WHEN current_setting('application_name') = 'victim' THEN 300 ELSE 0 END);")
	onConn(t, victim, "SET application_name = 'victim'")
	ended := make(chan error, 1)
	go func() {
		_, err := Migrator{Files: files}.Run(t.Context(), victim)
		ended <- err
	}()
	for count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'`, victim.PgConn().PID()) == 0 {
		select {
		case err := <-ended:
			t.Fatalf("the migration ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend($1::bigint::integer)`, int64(victim.PgConn().PID())); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Fatal("the killed migration says that it is done")
	}
	ran, err := Migrator{Files: files}.Run(t.Context(), connect(t, pool))
	if err != nil || len(ran) != 1 {
		t.Errorf("the next migration: %v, %v", ran, err)
	}
}

func TestUnfinishedIndexIsMadeAnew(t *testing.T) {
	pool := newDatabase(t)
	conn := connect(t, pool)
	onConn(t, conn, `INSERT INTO millrace.relays SELECT gen_random_uuid(), now() FROM generate_series(1, 2)`)
	files := withMigrations(t, "-- millrace:no-transaction\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS relays_seen\n    ON millrace.relays (seen_at);")
	if _, err := (Migrator{Files: files}).Run(t.Context(), conn); err == nil {
		t.Fatal("rows that are the same passed for unique")
	}
	if n := count(t, pool, `SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('millrace.relays_seen') AND NOT indisvalid`); n != 1 {
		t.Fatal("there is no unfinished index, so the test shows nothing")
	}
	onConn(t, conn, `DELETE FROM millrace.relays`)
	if ran, err := (Migrator{Files: files}).Run(t.Context(), conn); err != nil || len(ran) != 1 {
		t.Fatalf("%v, %v", ran, err)
	}
	if n := count(t, pool, `SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('millrace.relays_seen') AND indisvalid`); n != 1 {
		t.Error("the index is of no use")
	}
}
