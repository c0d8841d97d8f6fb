//go:build integration

package integration

import (
	"testing"
	"time"
)

// takeoverLimit is how long the tasks of a worker that was killed may wait.
const takeoverLimit = 10 * time.Second

// A worker is killed with turns running. What it ran, and the first task that
// waited in each of its partitions, run at the other worker soon: as the handler
// sees it.
func TestTakeover(t *testing.T) {
	o := observe(t, 500*time.Millisecond)
	p := newPipeline(t, services{}, "MILLRACE_SLOTS=100")
	p.startIngest()
	victim := p.launch("worker", o.worker("victim")...)
	p.start("worker", o.worker("survivor")...)
	victim.ready()
	owned := p.awaitShares("victim", "survivor")["victim"]
	running := p.send(load{conversations: 120, turns: 6, rate: 300})
	eventually(t, settlePatience, "the victim runs turns of all its partitions", func() error {
		return atLeast(len(o.runningAt("victim")), 40)
	})
	victim.kill()
	killed := time.Now()
	ran := make(map[string]bool)
	for _, c := range o.seen() {
		if c.worker == "victim" && killed.Sub(c.started) < o.work {
			ran[c.task] = true
		}
	}
	sent := running.wait()
	p.check(t, sent)

	starts := o.startedElsewhere("victim", killed)
	var again, longest time.Duration
	for task := range ran {
		if start, ok := starts[task]; ok { // else its commit was under way, and came through
			again = max(again, start.Sub(killed))
		}
	}
	next := make(map[int32]time.Time)
	for conversation, tasks := range sent {
		for _, task := range tasks {
			n := partitionOf(conversation)
			start, ok := starts[task.id]
			if !ok || !owned[n] || task.acceptedAt.After(killed) {
				continue
			}
			if first, ok := next[n]; !ok || start.Before(first) {
				next[n] = start
			}
		}
	}
	for _, start := range next {
		longest = max(longest, start.Sub(killed))
	}
	t.Logf("%d turns ran at the killed worker and were started elsewhere within %s; its %d partitions went on within %s",
		len(ran), again.Round(time.Millisecond), len(next), longest.Round(time.Millisecond))
	if again == 0 || len(next) != len(owned) {
		t.Fatalf("%d of %d partitions had something to do: the test shows nothing", len(next), len(owned))
	}
	if max(again, longest) > takeoverLimit {
		t.Errorf("a task of the killed worker waited %s, want at most %s", max(again, longest), takeoverLimit)
	}
}
