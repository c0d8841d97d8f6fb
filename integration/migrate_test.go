//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"millrace/statestore"
)

// nextRelease returns this program's migrations and, behind them, one of each kind
// that may be run while workers work. Before any release is out there is no older
// binary to build; so the workers of the version before are those of today, and the
// schema is that of a release to come. They know as little of it as an older
// binary would know of today's.
func nextRelease(t testing.TB, oldest int32) fstest.MapFS {
	t.Helper()
	const folder = "../statestore/migrations"
	files := fstest.MapFS{}
	today, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range today {
		text, err := os.ReadFile(filepath.Join(folder, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[file.Name()] = &fstest.MapFile{Data: text}
	}
	for _, sql := range []string{
		"CREATE TABLE millrace.regions (name text PRIMARY KEY);\nINSERT INTO millrace.regions VALUES ('here');",
		"ALTER TABLE millrace.conversations ADD region text NOT NULL DEFAULT '';",
		"ALTER TABLE millrace.completions ADD region text;",
		"ALTER TABLE millrace.outbox ADD region text;",
		"ALTER TABLE millrace.messages ADD CONSTRAINT seq_is_a_place CHECK (seq > 0) NOT VALID;",
		"-- millrace:no-transaction\nALTER TABLE millrace.messages VALIDATE CONSTRAINT seq_is_a_place;\n" +
			"CREATE INDEX CONCURRENTLY IF NOT EXISTS completions_finished\n    ON millrace.completions (finished_at);",
	} {
		files[fmt.Sprintf("%03d_next.sql", len(files)+1)] = &fstest.MapFile{Data: fmt.Appendf(nil, "-- millrace:oldest %d\n%s\n", oldest, sql)}
	}
	return files
}

// A migration runs while workers of the version before work, and while a report
// holds the tables that it changes. No task is lost or doubled, none takes a second
// attempt, and no commit is tried again. Workers of the version before can be started
// again afterwards, until a migration comes that says they do not work with it.
func TestMigrateUnderLoad(t *testing.T) {
	p := newPipeline(t, services{}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	workers := p.startWorkers(2)
	p.startIngest()
	running := p.send(load{conversations: 64, rate: 100})
	p.awaitCompletions(50)

	ctx := t.Context()
	connect := func(name string) *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(ctx, p.postgres)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) })
		if _, err := conn.Exec(ctx, "SET application_name = '"+name+"'"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	report, conn := connect("report"), connect("migrate")
	if _, err := report.Exec(ctx, "BEGIN; SELECT FROM millrace.conversations LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	own, err := statestore.Migrator{}.Schema(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logger := zerolog.New(&log)
	next := statestore.Migrator{Files: nextRelease(t, own.Version), Logger: &logger}
	type outcome struct {
		ran []statestore.Migration
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		ran, err := next.Run(ctx, conn)
		ended <- outcome{ran, err}
	}()
	// The report outlasts the first try: the commits that queued up behind it come
	// through before it ends.
	p.awaitVersion(own.Version + 1)
	pass(t, 700*time.Millisecond)
	p.awaitProgress(20)
	if _, err := report.Exec(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	got := <-ended
	if got.err != nil || len(got.ran) != 6 {
		t.Fatalf("the migrations of the next release: %v, %v", got.ran, got.err)
	}
	if !strings.Contains(log.String(), `application \"report\"`) {
		t.Errorf("the migration did not have to give way, so this shows little: %s", log.String())
	}
	p.awaitProgress(50)
	running.stop()
	e := p.check(t, running.wait())
	e.mustHaveRunOnce(t)
	for _, w := range workers {
		if n, err := w.counted("millrace_statestore_commit_retries_total"); err != nil || n != 0 {
			t.Errorf("%s tried commits again: %v, %v", w.name, n, err)
		}
	}
	for what, sql := range map[string]string{
		"dead letters":         "SELECT FROM millrace.dead_letters",
		"tasks with a 2nd try": "SELECT FROM millrace.completions WHERE attempts <> 1",
	} {
		if err := p.query(ctx, sql, func(pgx.Rows) error { return fmt.Errorf("there are %s", what) }); err != nil {
			t.Error(err)
		}
	}

	workers[0].terminate()
	p.start("worker").says("the schema is ahead of this program", time.Second)
	refuses := func(words string) {
		t.Helper()
		for _, role := range []string{"worker", "relay"} {
			refused := p.launch(role)
			if code := refused.wait(startPatience); code != 1 || !strings.Contains(string(refused.output()), words) {
				t.Errorf("%s ended with code %d, want 1 and %q", role, code, words)
			}
		}
	}
	execute(t, p, "UPDATE millrace.schema_version SET oldest_program = version")
	refuses(fmt.Sprintf("the schema has version %d and is for programs of version %[1]d or later, this one is of %d", own.Version+6, own.Version))
	execute(t, p, "UPDATE millrace.schema_version SET version = $1, oldest_program = 1", own.Version-1)
	refuses(fmt.Sprintf("the schema has version %d, this program needs %d: the database is behind this program; run `millrace migrate`", own.Version-1, own.Version))
}

// awaitVersion waits until the database has at least a version of the schema.
func (p *pipeline) awaitVersion(version int32) {
	p.t.Helper()
	eventually(p.t, settlePatience, fmt.Sprintf("the schema has version %d", version), func() error {
		var got int32
		err := p.query(p.t.Context(), "SELECT version FROM millrace.schema_version", func(rows pgx.Rows) error { return rows.Scan(&got) })
		if err == nil && got < version {
			err = fmt.Errorf("it has %d", got)
		}
		return err
	})
}
