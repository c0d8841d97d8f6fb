package consumer

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"millrace"
)

func TestMetadataRoundTrip(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	for range 2000 {
		base := rng.Int64N(1 << 50)
		var ranges []offsetRange
		at := base + 1 + rng.Int64N(20)
		for range rng.IntN(60) {
			to := at + 1 + rng.Int64N(1<<rng.IntN(12))
			ranges = append(ranges, offsetRange{at, to})
			at = to + 1 + rng.Int64N(1<<rng.IntN(12))
		}
		s := encodeMetadata(base, ranges)
		if len(s) > maxMetadata {
			t.Fatalf("%d bytes", len(s))
		}
		got, err := decodeMetadata(base, s)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, ranges) {
			t.Fatalf("%v came back as %v", ranges, got)
		}
		for _, r := range ranges {
			if !within(got, r.from) || !within(got, r.to-1) || within(got, r.to) || within(got, r.from-1) {
				t.Fatalf("within is wrong at the edges of %v", r)
			}
		}
	}
}

// TestMetadataIsCutAtTheTop: what does not fit is unfinished as far as the next
// owner knows, and what fits is right.
func TestMetadataIsCutAtTheTop(t *testing.T) {
	for name, step := range map[string]int64{"every other offset": 2, "runs": 300} {
		var ranges []offsetRange
		for i := range int64(200_000) {
			ranges = append(ranges, offsetRange{i*step + 1, i*step + max(2, step-5)})
		}
		s := encodeMetadata(0, ranges)
		got, err := decodeMetadata(0, s)
		if err != nil || len(s) > maxMetadata || len(got) < 1000 {
			t.Fatalf("%s: %d bytes, %d ranges, %v", name, len(s), len(got), err)
		}
		for i, r := range got {
			if r.from != ranges[i].from || r.to > ranges[i].to || r.to < ranges[i].to && i < len(got)-1 {
				t.Fatalf("%s: range %d is %v, want %v", name, i, r, ranges[i])
			}
		}
	}
}

func TestMetadataPicksTheSmallerForm(t *testing.T) {
	long := encodeMetadata(0, []offsetRange{{10, 1_000_000}})
	var dense []offsetRange
	for i := range int64(500) {
		dense = append(dense, offsetRange{2*i + 1, 2*i + 2})
	}
	if short := encodeMetadata(0, dense); len(long) > 16 || len(short) > 180 {
		t.Errorf("one run takes %d bytes, 500 alternating offsets %d", len(long), len(short))
	}
}

func TestWhatACommitSaysIsDoneDoesNotRunAgain(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	b.sendTo(t, millrace.Normal, 0, "a", "b", "slow", "d")
	_, stop := b.start(t, store, func(ctx context.Context, turn *millrace.Turn) error {
		if turn.Task().Conversation == "slow" {
			<-ctx.Done()
			return ctx.Err()
		}
		return appendTask(ctx, turn)
	}, func(c *Config) { c.DrainTimeout = time.Millisecond })
	eventually(t, "the commit says that the last one is done", func() bool {
		offset, metadata := b.committed(t, millrace.Normal, 0)
		return offset == 2 && metadata != ""
	})
	stop()
	// A store that has forgotten its completions: only the metadata can tell.
	fresh := newMemoryStore()
	b.start(t, fresh, appendTask, nil)
	b.sendTo(t, millrace.Normal, 0, "e")
	done := fresh.await(t, 2)
	if len(done) != 2 || done[0].Task.Conversation != "slow" || done[1].Task.Conversation != "e" {
		t.Errorf("ran %s, want the slow task and the new one", ids(done))
	}
}

func FuzzDecodeMetadata(f *testing.F) {
	f.Add(int64(5), encodeMetadata(5, []offsetRange{{7, 9}, {12, 100}}))
	f.Add(int64(0), encodeMetadata(0, []offsetRange{{1, 2}, {3, 4}, {5, 6}, {7, 8}}))
	f.Add(int64(1<<62), "AQH//////////38")
	f.Add(int64(0), "member-id-of-another-client")
	f.Fuzz(func(t *testing.T, base int64, s string) {
		ranges, err := decodeMetadata(base, s)
		if err != nil {
			return
		}
		last := base
		for _, r := range ranges {
			if r.from < last || r.to <= r.from {
				t.Fatalf("ranges %v from %d do not ascend", ranges, base)
			}
			last = r.to
		}
	})
}
