//go:build integration

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace/internal/testenv"
)

// The primary of PostgreSQL is killed under load and its standby takes over. Workers
// know both from their URL. What was acknowledged stands, nothing is done twice,
// and nobody has to start a worker again.
func TestFailover(t *testing.T) {
	primary := testenv.StartPostgres(t)
	standby := testenv.StartPostgresStandby(t, primary)
	both := fmt.Sprintf("postgres://millrace:millrace@%s,%s/millrace?sslmode=disable", primary.Address, standby.Address)
	p := newPipeline(t, services{postgres: both + "&target_session_attrs=read-write"}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	workers := []*process{
		p.launch("worker"),
		// This one takes whatever answers: the standby as well, before it takes writes.
		p.launch("worker", "MILLRACE_POSTGRES_URL="+both),
	}
	for _, w := range workers {
		w.ready()
	}
	ingest := p.startIngest()
	const conversations, turns = 120, 6
	running := p.send(load{conversations: conversations, turns: turns, rate: 150})
	p.awaitCompletions(conversations * turns / 3)
	if err := primary.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	workers[1].says(`cannot execute .* in a read-only transaction`, startPatience)
	promote(t, standby)
	promoted := time.Now()
	p.awaitProgress(20)
	t.Logf("turns were committed again %s after the standby was promoted", time.Since(promoted).Round(time.Millisecond))
	e := p.check(t, running.wait())
	t.Logf("all done %s after the promotion; %d requests were sent again", time.Since(promoted).Round(time.Millisecond), running.retried.Load())
	e.mustHaveRunOnce(t)
	for _, process := range append(workers, ingest) {
		process.awaitReadyz()
	}
}

func promote(t *testing.T, standby *testenv.Server) {
	t.Helper()
	p := pipeline{postgres: standby.URL}
	var promoted bool
	err := p.query(t.Context(), `SELECT pg_promote()`, func(rows pgx.Rows) error { return rows.Scan(&promoted) })
	if err != nil || !promoted {
		t.Fatalf("promote the standby: %v, %v", promoted, err)
	}
}
