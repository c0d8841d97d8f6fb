//go:build integration

package integration

import (
	"testing"
	"time"

	"millrace/internal/testenv"
)

// PostgreSQL goes away under load, for longer than a commit is tried again.
// Nothing is committed meanwhile, and afterwards all goes on by itself.
func TestPostgresRestarted(t *testing.T) {
	server := testenv.StartPostgres(t)
	p := newPipeline(t, services{postgres: server.URL}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	p.restartUnderLoad(server, 12*time.Second)
}

// restartUnderLoad stops a service half-way through a load and starts it again.
func (p *pipeline) restartUnderLoad(server *testenv.Server, down time.Duration) {
	t := p.t
	t.Helper()
	workers := p.startWorkers(2)
	ingest := p.startIngest()
	const conversations, turns = 160, 8
	running := p.send(load{conversations: conversations, turns: turns, rate: 200})
	p.awaitCompletions(conversations * turns / 3)
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	pass(t, down)
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	p.awaitProgress(20)
	t.Logf("turns were committed again %s after the restart", time.Since(back).Round(time.Millisecond))
	e := p.check(t, running.wait())
	t.Logf("all done %s after the restart; %d requests were sent again", time.Since(back).Round(time.Millisecond), running.retried.Load())
	e.mustHaveRunOnce(t)
	for _, process := range append(workers, ingest) {
		process.awaitReadyz()
	}
}
