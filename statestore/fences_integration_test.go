//go:build integration

package statestore

import (
	"math"
	"slices"
	"testing"

	"millrace"
)

func fence(topicID [16]byte, partition int32, below int64) millrace.Fence {
	return millrace.Fence{TopicID: topicID, Partition: partition, Below: below}
}

func TestFencesOnlyRise(t *testing.T) {
	s := run(t, Config{Pool: newDatabase(t), Redis: newRedis(t)})
	a := [16]byte{1}
	for _, step := range []struct {
		fences []millrace.Fence
		before []int64
	}{
		{[]millrace.Fence{fence(a, 1, 100), fence(a, 0, 50)}, []int64{0, 0}},
		{[]millrace.Fence{fence(a, 0, 40), fence(a, 1, 120)}, []int64{50, 100}},
		{[]millrace.Fence{fence(a, 1, 1), fence([16]byte{2}, 1, 1), fence(a, 0, 1)}, []int64{120, 0, 50}},
	} {
		before, err := s.RaiseFences(t.Context(), step.fences)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(before, step.before) {
			t.Errorf("raising %v: %v was there before, want %v", step.fences, before, step.before)
		}
	}
}

// Two workers that both believe to own a partition raise its fence at once: each
// learns what the other's turns may have come to, or goes on alone below it.
func TestFencesAreRaisedFromSeveralSidesAtOnce(t *testing.T) {
	s := run(t, Config{Pool: newDatabase(t), Redis: newRedis(t)})
	const partitions = 20
	forwards, backwards := make([]millrace.Fence, partitions), make([]millrace.Fence, partitions)
	for i := range partitions {
		forwards[i] = millrace.Fence{Partition: int32(i), TopicID: [16]byte{1}}
		backwards[partitions-1-i] = forwards[i]
	}
	failed := make(chan error)
	raise := func(fences []millrace.Fence, add int64) {
		var err error
		for n := int64(1); n <= 50 && err == nil; n++ {
			own := slices.Clone(fences)
			for i := range own {
				own[i].Below = 2*n + add
			}
			_, err = s.RaiseFences(t.Context(), own)
		}
		failed <- err
	}
	go raise(forwards, 0)
	go raise(backwards, 1)
	for range 2 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	before, err := s.RaiseFences(t.Context(), forwards)
	if err != nil {
		t.Fatal(err)
	}
	for i, below := range before {
		if below != 101 {
			t.Errorf("partition %d: %d, want 101", i, below)
		}
	}
}

func TestPartitionsWithoutAFenceAreUnknownWhereTasksRanBeforeFences(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	// What the migration does when it finds conversations.
	if _, err := pool.Exec(t.Context(), "INSERT INTO millrace.fences VALUES ('00000000-0000-0000-0000-000000000000', 0, 0)"); err != nil {
		t.Fatal(err)
	}
	fences := []millrace.Fence{fence([16]byte{1}, 3, 7)}
	for _, want := range []int64{math.MaxInt64, 7} {
		before, err := s.RaiseFences(t.Context(), fences)
		if err != nil {
			t.Fatal(err)
		}
		if before[0] != want {
			t.Errorf("%d was there before, want %d", before[0], want)
		}
	}
}
