//go:build integration

package app

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// scripts/with-pgbouncer sets MILLRACE_TEST_POOLER: then the tests' PostgreSQL is
// behind a pooler.
func TestPoolerIsWarnedOfWhenStatementsArePreparedForGood(t *testing.T) {
	for mode, warns := range map[pgx.QueryExecMode]bool{
		pgx.QueryExecModeCacheStatement: os.Getenv("MILLRACE_TEST_POOLER") != "",
		pgx.QueryExecModeExec:           false,
	} {
		cfg, err := pgx.ParseConfig(testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		cfg.DefaultQueryExecMode = mode
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := notePooler(t.Context(), conn, zerolog.New(&out)); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(out.String(), "default_query_exec_mode=exec"); got != warns {
			t.Errorf("%v: warned %v, want %v: %s", mode, got, warns, &out)
		}
	}
}
