package consumer

import (
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// serve runs n picks of a schedule in which every priority always has a lane
// that waits, and counts who got them.
func serve(t *testing.T, s *schedule, n int) map[int]int {
	t.Helper()
	now := time.Now()
	got := make(map[int]int)
	for p := range s.queues {
		s.enqueue(newLane(laneKey{}, len(s.queues)), p, now)
	}
	for range n {
		now = now.Add(time.Second)
		before := append([]int(nil), s.running...)
		if s.pick(now) == nil {
			t.Fatal("nothing picked although all wait")
		}
		for p := range s.running {
			if s.running[p] > before[p] {
				got[p]++
				s.release(p)
				s.enqueue(newLane(laneKey{}, len(s.queues)), p, now)
			}
		}
	}
	return got
}

func TestScheduleAgesEveryLowerPriority(t *testing.T) {
	got := serve(t, newSchedule(1, []int{0, 0, 0}, 2*time.Second), 40*agingEvery)
	if got[1] == 0 || got[2] == 0 || got[1]+got[2] > 40 {
		t.Errorf("slots by priority %v: want 40 for the lower ones, and some for each", got)
	}
}

func TestScheduleAgesHoweverOftenItIsAskedInVain(t *testing.T) {
	now := time.Now()
	// The only free slot is kept for high: normal asks for it in vain each time.
	s := newSchedule(2, []int{1, 0, 0}, time.Second)
	old := newLane(laneKey{}, 3)
	s.enqueue(old, 2, now.Add(-time.Minute))
	for range 2 * agingEvery {
		s.enqueue(newLane(laneKey{}, 3), 1, now)
		l := s.pick(now)
		if l == old {
			return
		}
		if l == nil {
			t.Fatal("nothing picked")
		}
		if s.pick(now) != nil {
			t.Fatal("the reserved slot was handed out")
		}
		s.release(1)
	}
	t.Error("the lane that has waited too long never got a slot")
}

func TestBackoffGrowsToItsBoundAndNeverBeyond(t *testing.T) {
	for _, tt := range []struct{ low, high time.Duration }{
		{200 * time.Millisecond, 30 * time.Second},
		{30 * time.Second, 24 * time.Hour},
		{time.Hour, 1<<63 - 1},
		{time.Second, time.Second},
	} {
		for attempt := 1; attempt <= millrace.MaxAttempts; attempt++ {
			if got := fullJitter(tt.low, tt.high, attempt); got <= 0 || got > tt.high {
				t.Errorf("from %s to %s, attempt %d: %s", tt.low, tt.high, attempt, got)
			}
		}
	}
}

func TestConfigRefusesWhatWouldNeverRun(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"all slots reserved for others", func(c *Config) {
			c.Slots, c.Reserved = 4, map[millrace.Priority]int{millrace.High: 4}
		}, `"batch" would never run`},
		{"more reserved than there are", func(c *Config) {
			c.Slots, c.Reserved = 4, map[millrace.Priority]int{millrace.High: 5}
		}, "5 slots are reserved, there are 4"},
		{"reserved for nobody", func(c *Config) { c.Reserved = map[millrace.Priority]int{"urgent": 1} }, `"urgent"`},
		{"backoff upside down", func(c *Config) { c.RetryMin = time.Hour }, "RetryMin 1h0m0s is above RetryMax 30s"},
		{"negative time", func(c *Config) { c.DrainTimeout = -1 }, "DrainTimeout"},
		{"no memory", func(c *Config) { c.IntakeBytes = -1 }, "IntakeBytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Kafka: []kgo.Opt{kgo.SeedBrokers("none")}, Handler: millrace.HandlerFunc(appendTask), Store: newMemoryStore()}
			tt.change(&cfg)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
		})
	}
}
