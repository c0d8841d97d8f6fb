//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Processes that may open two connections each open no more under load, in which a
// worker's commits, reads and relay want many at once. They get slower and fail at
// nothing.
func TestConnectionsStayWithinTheirBudget(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, services{}, "MILLRACE_POSTGRES_MAX_CONNS=2")
	named := func(name string) string { return "MILLRACE_POSTGRES_URL=" + p.postgres + "&application_name=" + name }
	ingest := p.start("ingest", named("ingest"))
	p.sendTo(ingest.url())
	worker := p.start("worker", named("worker"))
	p.start("relay", named("relay"))

	watched, stop := context.WithCancel(t.Context())
	defer stop()
	most := make(chan map[string]int, 1)
	go func() {
		seen, err := watchConnections(watched, p.postgres)
		if err != nil {
			t.Errorf("watch connections: %v", err)
		}
		most <- seen
	}()
	load := p.send(load{conversations: 100, turns: 6, rate: 1_000})
	sent := load.wait()
	p.awaitCompletions(100 * 6)
	stop()
	seen := <-most
	t.Logf("at most %v connections", seen)
	for _, name := range []string{"ingest", "worker", "relay"} {
		if seen[name] > 2 {
			t.Errorf("%s: %d connections at once, want at most 2", name, seen[name])
		}
	}
	if seen["worker"] == 0 || seen["relay"] == 0 {
		t.Error("no connections were seen")
	}
	if n := metric(t, worker, "millrace_postgres_connections_max"); n != 2 {
		t.Errorf("the metric says at most %v", n)
	}
	if n := metric(t, worker, "millrace_postgres_waits_total"); n < 10 {
		t.Errorf("the metric says that %v waited for a connection, with 2 for all", n)
	}
	if len(sent) != 100 {
		t.Errorf("%d conversations sent", len(sent))
	}
}

// watchConnections returns how many connections there were at once by the name of
// the program.
func watchConnections(ctx context.Context, database string) (map[string]int, error) {
	most := make(map[string]int)
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return most, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return most, nil
		case <-tick.C:
		}
		rows, err := conn.Query(ctx, `SELECT application_name, count(*)::integer FROM pg_stat_activity
			WHERE datname = current_database() AND application_name <> '' GROUP BY 1`)
		if err == nil {
			var (
				name string
				n    int
			)
			_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
				most[name] = max(most[name], n)
				return nil
			})
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			return most, err
		}
	}
}

// metric returns the value of a process's metric that has no labels.
func metric(t *testing.T, p *process, name string) float64 {
	t.Helper()
	resp, err := http.Get(p.url() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(fmt.Sprintf(`(?m)^%s (\S+)$`, name)).FindSubmatch(body)
	if found == nil {
		t.Fatalf("no metric %s", name)
	}
	value, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
