//go:build integration

package integration

import "testing"

// An ingest is told to stop under load and another one takes over: whatever was
// accepted is done, and clients that send the rest again, under the same
// Idempotency-Key, get each turn done once.
func TestIngestStopsWithoutLoss(t *testing.T) {
	p := newPipeline(t, services{})
	first := p.startIngest()
	p.start("worker")
	second := p.start("ingest")
	const conversations, turns = 160, 10
	running := p.send(load{conversations: conversations, turns: turns, rate: 400})
	p.awaitCompletions(conversations * turns / 3)
	first.terminate()
	byFirst := running.accepted.Load()
	p.sendTo(second.url())
	sent := running.wait()
	if byFirst == 0 || byFirst == conversations*turns {
		t.Errorf("the first ingest took %d of %d tasks: it was not stopped under load", byFirst, conversations*turns)
	}
	t.Logf("the first ingest took %d tasks; %d requests were sent again", byFirst, running.retried.Load())
	p.check(t, sent)
}
