package outbox

import (
	"testing"
	"time"
)

func TestShardsRestWhenBatchesTakeLong(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct{ took, rest time.Duration }{
		{2 * ms, 8 * ms}, // reads are 10 ms apart
		{10 * ms, 0},
		{20 * ms, 0}, // nothing is added to what a free machine takes
		{22 * ms, 4 * ms},
		{50 * ms, 10 * ms},
		{time.Minute, 10 * ms},
	} {
		if got := max(gathering(tc.took), 0); got != tc.rest {
			t.Errorf("after a batch of %s a shard rests for %s, want %s", tc.took, got, tc.rest)
		}
	}
}
