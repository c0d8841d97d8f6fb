//go:build integration

package integration

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"millrace/internal/testenv"
)

// Redis loses everything under load, several times: it only ever held copies.
func TestRedisFlushed(t *testing.T) {
	server := testenv.StartRedis(t)
	options, err := redis.ParseURL(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })

	p := newPipeline(t, services{redis: server.URL}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	p.startWorkers(2)
	p.startIngest()
	const conversations, turns = 160, 8
	running := p.send(load{conversations: conversations, turns: turns, rate: 300})
	for flush := range 4 {
		p.awaitCompletions(conversations * turns * (flush + 1) / 6)
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	e := p.check(t, running.wait())
	e.mustHaveRunOnce(t)
}

// mustHaveRunOnce checks that no handler was called again for a task that then
// completed: an outage is not the task's fault and burns no attempt.
func (e *evidence) mustHaveRunOnce(t testing.TB) {
	t.Helper()
	for _, r := range e.results {
		if r.result.Attempts != 1 {
			t.Errorf("task %s counts %d attempts", r.result.TaskID, r.result.Attempts)
		}
	}
}
