package consumer

import (
	"testing"
	"time"
)

func TestScheduleServesHigherPrioritiesFirst(t *testing.T) {
	now := time.Now()
	s := newSchedule(2, []int{0, 0, 0}, time.Minute)
	batch, high, normal := newLane(laneKey{}, 3), newLane(laneKey{}, 3), newLane(laneKey{}, 3)
	s.enqueue(batch, 2, now)
	s.enqueue(normal, 1, now)
	s.enqueue(high, 0, now)
	if got := s.pick(now); got != high {
		t.Error("first pick is not the high lane")
	}
	if got := s.pick(now); got != normal {
		t.Error("second pick is not the normal lane")
	}
	if s.pick(now) != nil {
		t.Error("a third slot was handed out of two")
	}
	s.release(0)
	if got := s.pick(now); got != batch {
		t.Error("a released slot did not go to the batch lane")
	}
}

func TestScheduleKeepsReservedSlots(t *testing.T) {
	now := time.Now()
	s := newSchedule(3, []int{1, 0, 0}, time.Minute)
	for range 5 {
		s.enqueue(newLane(laneKey{}, 3), 2, now)
	}
	for i := range 2 {
		if s.pick(now) == nil {
			t.Fatalf("slot %d was refused to batch", i)
		}
	}
	if s.pick(now) != nil {
		t.Fatal("batch took the slot that is reserved for high")
	}
	high := newLane(laneKey{}, 3)
	s.enqueue(high, 0, now)
	if s.pick(now) != high {
		t.Fatal("high did not get its reserved slot")
	}
	// The reservation is in use: the next free slot is anybody's.
	s.release(2)
	if s.pick(now) == nil {
		t.Fatal("a slot stays idle although the reservation is filled")
	}
}

func TestScheduleAgesLowerPriorities(t *testing.T) {
	start := time.Now()
	s := newSchedule(1, []int{0, 0}, time.Second)
	old := newLane(laneKey{}, 2)
	s.enqueue(old, 1, start)
	now := start.Add(2 * time.Second)
	for i := range agingEvery {
		s.enqueue(newLane(laneKey{}, 2), 0, now)
		got := s.pick(now)
		if got == old {
			return
		}
		if got == nil {
			t.Fatalf("pick %d: nothing", i)
		}
		s.release(0)
	}
	t.Fatalf("a lane that waited longer than the aging time got none of %d slots", agingEvery)
}

func TestScheduleMovesALaneUpAndForgetsItsOldPlace(t *testing.T) {
	now := time.Now()
	s := newSchedule(2, []int{0, 0}, time.Minute)
	l := newLane(laneKey{}, 2)
	s.enqueue(l, 1, now)
	s.enqueue(l, 0, now)
	if s.pick(now) != l {
		t.Fatal("lane not picked")
	}
	if s.pick(now) != nil {
		t.Fatal("the lane was picked from its old place too")
	}
}
