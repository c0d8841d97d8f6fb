//go:build integration

package integration

import (
	"testing"
	"time"
)

// takeoverLimit is how long the tasks of a worker that was killed may wait.
const takeoverLimit = 10 * time.Second

// One of two workers is killed under load, with turns running, and replaced by
// one that has nothing of it: no name, an empty disk.
func TestWorkerKilled(t *testing.T) {
	p := newPipeline(t, services{}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	p.startIngest()
	victim := p.launch("worker", "MILLRACE_WORKER_NAME=victim")
	p.start("worker", "MILLRACE_WORKER_NAME=survivor")
	victim.ready()
	owned := p.awaitShares("victim", "survivor")["victim"]

	const conversations, turns = 400, 6
	running := p.send(load{conversations: conversations, turns: turns, rate: 400})
	p.awaitCompletions(conversations * turns / 2)
	victim.kill()
	killed := time.Now()
	p.start("worker")
	sent := running.wait()
	e := p.check(t, sent)

	longest := takeover(t, sent, e, owned, killed)
	t.Logf("partitions of the killed worker had their next start within %s", longest.Round(time.Millisecond))
	if longest > takeoverLimit {
		t.Errorf("a partition of the killed worker stood still for %s, want at most %s", longest, takeoverLimit)
	}
}

// takeover returns the longest time that a partition with something to do stood
// still after its worker was killed.
func takeover(t *testing.T, sent map[string][]sentTask, e evidence, owned map[int32]bool, killed time.Time) time.Duration {
	t.Helper()
	started := make(map[string]time.Time)
	for _, r := range e.results {
		started[r.result.TaskID] = r.result.StartedAt
	}
	next := make(map[int32]time.Duration)
	for conversation, tasks := range sent {
		partition := partitionOf(conversation)
		for _, task := range tasks {
			wait := started[task.id].Sub(killed)
			if !owned[partition] || wait < 0 || task.acceptedAt.After(killed) {
				continue
			}
			if best, ok := next[partition]; !ok || wait < best {
				next[partition] = wait
			}
		}
	}
	if len(next) == 0 {
		t.Fatal("the killed worker had nothing to do: the test shows nothing")
	}
	var longest time.Duration
	for _, wait := range next {
		longest = max(longest, wait)
	}
	return longest
}
