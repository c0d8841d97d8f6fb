package consumer

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestTrackerNeverPassesAnUnfinishedOffset holds the tracker against the
// definition of what may be committed, over random logs with gaps, finished in
// random order, while more is read.
func TestTrackerNeverPassesAnUnfinishedOffset(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		var (
			tr       tracker
			open     []int64
			offset   = rng.Int64N(1000)
			finished = func(i int) {
				o := open[i]
				open = append(open[:i], open[i+1:]...)
				tr.done(o)
				tr.done(o) // a second mark changes nothing
			}
		)
		for range 300 {
			if rng.IntN(2) == 0 {
				offset += 1 + rng.Int64N(3)
				if !tr.add(offset) {
					t.Fatalf("offset %d refused", offset)
				}
				if tr.add(offset) {
					t.Fatalf("offset %d accepted twice", offset)
				}
				open = append(open, offset)
			} else if len(open) > 0 {
				finished(rng.IntN(len(open)))
			}
			if !tr.known {
				continue
			}
			want := offset + 1
			for _, o := range open {
				want = min(want, o)
			}
			if tr.next != want {
				t.Fatalf("next = %d, want %d with %v open", tr.next, want, open)
			}
		}
	}
}

func TestTrackerIgnoresOffsetsItNeverSaw(t *testing.T) {
	var tr tracker
	tr.add(5)
	tr.add(9)
	tr.done(7)
	tr.done(100)
	if tr.next != 5 || tr.spread() != 5 {
		t.Errorf("next %d, spread %d; want 5, 5", tr.next, tr.spread())
	}
}
