//go:build integration

package integration

import (
	"fmt"
	"testing"
)

// One of two workers is killed under load, with turns running, and replaced by
// one that has nothing of it: no name, an empty disk. How soon its tasks go on,
// TestTakeover measures.
func TestWorkerKilled(t *testing.T) {
	p := newPipeline(t, services{}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	p.startIngest()
	victim := p.launch("worker", "MILLRACE_WORKER_NAME=victim")
	p.start("worker", "MILLRACE_WORKER_NAME=survivor")
	victim.ready()
	p.awaitShares("victim", "survivor")

	const conversations, turns = 400, 6
	running := p.send(load{conversations: conversations, turns: turns, rate: 400})
	p.awaitCompletions(conversations * turns / 2)
	victim.kill()
	p.start("worker")
	p.check(t, running.wait())
}

func atLeast(n, want int) error {
	if n < want {
		return fmt.Errorf("%d of %d", n, want)
	}
	return nil
}
