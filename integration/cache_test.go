//go:build integration

package integration

import (
	"fmt"
	"testing"
)

// What is kept between turns saves looking the conversation up, unless that is
// switched off.
func TestCacheBytes(t *testing.T) {
	p := newPipeline(t, services{})
	p.startIngest()
	for setting, want := range map[string]float64{"0": 5, "1048576": 1} {
		worker := p.start("worker", "MILLRACE_CACHE_BYTES="+setting)
		for n := range 5 { // the lane is empty in between
			p.result(t, p.mustSubmit(t, "conversation-"+setting, "normal", fmt.Sprint(n)).id)
		}
		if opened := worker.metric(t, "millrace_statestore_opened_total"); opened != want {
			t.Errorf("MILLRACE_CACHE_BYTES=%s: the conversation was opened %v times in 5 turns, want %v", setting, opened, want)
		}
		worker.terminate()
	}
}
