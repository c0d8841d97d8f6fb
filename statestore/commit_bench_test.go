//go:build integration

package statestore

import (
	"fmt"
	"sync"
	"testing"

	"millrace"
)

// BenchmarkCommit commits turns of many conversations at once, as a busy worker
// does: state, two messages, completion and result event.
func BenchmarkCommit(b *testing.B) {
	s := newStore(b)
	const conversations = 1000
	var (
		lanes [conversations]millrace.Conversation
		n     int
	)
	for i := range lanes {
		lanes[i].ID = fmt.Sprintf("conv-%d", i)
	}
	for b.Loop() {
		var all sync.WaitGroup
		n++
		for i := range lanes {
			all.Go(func() {
				c := completion(fmt.Sprintf("task-%d-%d", n, i), lanes[i])
				outcome, err := s.Commit(b.Context(), c)
				if err != nil || outcome != millrace.Committed {
					b.Errorf("%s: %v, %v", c.Task.ID, outcome, err)
				}
				lanes[i] = c.Base.After(&c.Task, &c.Effects, c.FinishedAt)
			})
		}
		all.Wait()
	}
	b.ReportMetric(float64(n*conversations)/b.Elapsed().Seconds(), "turns/s")
}
