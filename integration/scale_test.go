//go:build integration

package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// pauseLimit is what a rebalance may add to the longest pause of a partition that
// stays with its worker.
const pauseLimit = 100 * time.Millisecond

// Workers go from one to four and back to one under load, with turns of two
// seconds. Each task is started once, as the handler sees it, and partitions that
// stay with the first worker go on as if nothing had happened.
//
// A turn could start once its task is accepted and the turn before it in its
// conversation has ended; there is a free slot at all times, for there are fewer
// conversations than slots. How long it waits is the time from then to its start:
// the answer of the handler, the commit and the dispatch of the next turn at
// least, the fetch when it has only just been accepted. A pause of a partition is
// the longest time in which turns could start and none did: from when the first
// of those waiting could, to the next start.
func TestScaleOneFourOne(t *testing.T) {
	o := observe(t, 2*time.Second)
	p := newPipeline(t, services{}, "MILLRACE_SLOTS=200")
	p.startIngest()
	p.start("worker", o.worker("first")...)
	p.awaitShares("first")
	running := p.send(load{conversations: 96, rate: 64})
	p.awaitCompletions(96)

	began := time.Now()
	names := []string{"second", "third", "fourth"}
	var others []*process
	for _, name := range names {
		others = append(others, p.launch("worker", o.worker(name)...))
	}
	for _, w := range others {
		w.ready()
	}
	stayed := p.awaitShares(append(names, "first")...)["first"]
	shared := time.Now()
	p.awaitProgress(192)
	left := time.Now()
	for _, w := range others {
		w.terminate()
	}
	p.awaitShares("first")
	p.awaitProgress(96)
	ended := time.Now()
	running.stop()
	sent := running.wait()
	e := p.check(t, sent)
	e.mustHaveRunOnce(t)

	starts := make(map[string]int)
	byWorker := make(map[string]int)
	for _, c := range o.seen() {
		starts[c.task]++
		byWorker[c.worker]++
		if n := partitionOf(c.conversation); stayed[n] && c.worker != "first" {
			t.Errorf("%s ran a task of partition %d, which stays with the first worker", c.worker, n)
		}
	}
	for task, n := range starts {
		if n != 1 {
			t.Errorf("task %s was started %d times", task, n)
		}
	}
	before, _ := pauses(sent, o.seen(), stayed, time.Time{}, began)
	between, _ := pauses(sent, o.seen(), stayed, shared, left)
	up, most := pauses(sent, o.seen(), stayed, began, shared)
	down, _ := pauses(sent, o.seen(), stayed, left, ended)
	t.Logf("%d turns, by worker %v", len(starts), byWorker)
	t.Logf("longest pause of %d partition numbers that stayed: %s from 1 to 4 workers (%d turns), %s from 4 to 1; without a rebalance %s and %s",
		len(stayed), up, most, down, before, between)
	if most == 0 || len(byWorker) != 4 {
		t.Fatal("nothing ran where it should: the test shows nothing")
	}
	if longest, quiet := max(up, down), max(before, between); longest > quiet+pauseLimit {
		t.Errorf("a partition that stays with its worker paused for %s, want at most %s more than the %s without a rebalance", longest, pauseLimit, quiet)
	}
}

// pauses returns the longest pause of the given partitions within a span, and how
// many turns started there then.
func pauses(sent map[string][]sentTask, calls []call, partitions map[int32]bool, from, to time.Time) (longest time.Duration, turns int) {
	accepted := make(map[string]time.Time)
	for _, tasks := range sent {
		for _, task := range tasks {
			accepted[task.id] = task.acceptedAt
		}
	}
	ended := make(map[string]time.Time) // of a conversation's turn before
	type wait struct{ could, did time.Time }
	waits := make(map[int32][]wait)
	for _, c := range calls {
		could := accepted[c.task]
		if before := ended[c.conversation]; before.After(could) {
			could = before
		}
		ended[c.conversation] = c.ended
		if n := partitionOf(c.conversation); partitions[n] && c.started.After(from) && c.started.Before(to) {
			waits[n] = append(waits[n], wait{could, c.started})
			turns++
		}
	}
	for _, ws := range waits {
		slices.SortFunc(ws, func(a, b wait) int { return a.did.Compare(b.did) })
		for i, w := range ws {
			// Of those that start here or later, the first that could; nothing started
			// since the start before.
			could := w.could
			for _, later := range ws[i:] {
				if later.could.Before(could) {
					could = later.could
				}
			}
			if i > 0 && could.Before(ws[i-1].did) {
				could = ws[i-1].did
			}
			longest = max(longest, w.did.Sub(could))
		}
	}
	return longest.Round(100 * time.Microsecond), turns
}

func TestPausesAreWhatNobodyFilled(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	sent := make(map[string][]sentTask)
	task := func(conversation string, n, accepted int) string {
		id := fmt.Sprint(conversation, n)
		sent[conversation] = append(sent[conversation], sentTask{id: id, conversation: conversation, acceptedAt: at(accepted)})
		return id
	}
	calls := []call{
		{task: task("a", 1, 0), conversation: "a", started: at(10), ended: at(100)},
		{task: task("a", 2, 0), conversation: "a", started: at(130), ended: at(200)}, // 30 after the one before
		{task: task("a", 3, 300), conversation: "a", started: at(345), ended: at(400)},
	}
	for _, tt := range []struct {
		from, to int
		want     time.Duration
		turns    int
	}{{0, 1000, 45 * time.Millisecond, 3}, {5, 200, 30 * time.Millisecond, 2}, {500, 1000, 0, 0}} {
		got, turns := pauses(sent, calls, map[int32]bool{partitionOf("a"): true}, at(tt.from), at(tt.to))
		if got != tt.want || turns != tt.turns {
			t.Errorf("from %d to %d ms: %s in %d turns, want %s in %d", tt.from, tt.to, got, turns, tt.want, tt.turns)
		}
	}
}
