package consumer

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var threeTopics = map[string]int32{"high": 12, "normal": 12, "batch": 12}

func topicList() []string { return []string{"batch", "high", "normal"} }

// holding returns the partitions that belong to numbers.
func holding(topics map[string]int32, numbers map[int32]bool) map[topicPartition]bool {
	held := make(map[topicPartition]bool)
	for topic, count := range topics {
		for n := range numbers {
			if n < count {
				held[topicPartition{topic, n}] = true
			}
		}
	}
	return held
}

// numbers returns the numbers of which the member holds a partition.
func (m *balanceMember) numbers() map[int32]bool {
	numbers := make(map[int32]bool)
	for tp := range m.holds {
		numbers[tp.partition] = true
	}
	return numbers
}

// round plays one rebalance: everybody gets what the leader says.
func round(t *testing.T, members []balanceMember, topics map[string]int32, generation int32) (changed int) {
	t.Helper()
	next := make([]map[int32]bool, len(members))
	for i := range next {
		next[i] = make(map[int32]bool)
	}
	perTopic := make(map[string]map[int32]int)
	for _, a := range assign(members, topics) {
		if perTopic[a.topic] == nil {
			perTopic[a.topic] = make(map[int32]int)
		}
		if other, twice := perTopic[a.topic][a.partition]; twice {
			t.Fatalf("%s/%d assigned to %d and %d", a.topic, a.partition, other, a.member)
		}
		perTopic[a.topic][a.partition] = a.member
		next[a.member][a.partition] = true
	}
	for topic, owners := range perTopic {
		for p, m := range owners {
			for other := range perTopic {
				if om, ok := perTopic[other][p]; ok && om != m {
					t.Fatalf("number %d: %s belongs to %d, %s to %d", p, topic, m, other, om)
				}
			}
		}
	}
	held := make([]map[int32]bool, len(members))
	for i := range members {
		held[i] = members[i].numbers()
	}
	for i := range members {
		for n := range next[i] {
			for j := range members {
				if j != i && held[j][n] {
					t.Fatalf("number %d goes to %d while %d still owns it", n, i, j)
				}
			}
			if !held[i][n] {
				changed++
			}
		}
		members[i].holds = holding(topics, next[i])
		members[i].generation = generation
	}
	return changed
}

func TestBalancerConvergesEvenlyAndMovesNoMoreThanItMust(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	for range 100 {
		numbers := 1 + rng.Int32N(60)
		topics := map[string]int32{"high": numbers, "normal": numbers, "batch": numbers}
		var members []balanceMember
		generation := int32(0)
		for range 12 {
			before := len(members)
			if before > 0 && rng.IntN(3) == 0 {
				i := rng.IntN(before)
				members = append(members[:i], members[i+1:]...)
			} else {
				members = append(members, balanceMember{topics: topicList()})
			}
			if len(members) == 0 {
				continue
			}
			unowned := int(numbers)
			for _, m := range members {
				unowned -= len(m.numbers())
			}
			surplus := 0
			for _, m := range members {
				surplus += max(0, len(m.numbers())-(int(numbers)+len(members)-1)/len(members))
			}
			moved := 0
			for range 3 {
				generation++
				moved += round(t, members, topics, generation)
			}
			low, high := int(numbers), 0
			for _, m := range members {
				low, high = min(low, len(m.numbers())), max(high, len(m.numbers()))
			}
			if high-low > 1 {
				t.Fatalf("%d numbers over %d members: from %d to %d each", numbers, len(members), low, high)
			}
			// Whatever nobody owned has to move, and so has what exceeds a share; one
			// more per member may, because shares differ by one.
			if moved > unowned+surplus+len(members) {
				t.Fatalf("%d numbers moved, %d had no owner and %d were surplus", moved, unowned, surplus)
			}
		}
	}
}

func TestBalancerWithholdsAMovingNumberInAllTopics(t *testing.T) {
	all := make(map[int32]bool)
	for n := range int32(12) {
		all[n] = true
	}
	a := balanceMember{topics: topicList(), holds: holding(threeTopics, all), generation: 1}
	b := balanceMember{topics: topicList()}
	got := make(map[string]int)
	for _, as := range assign([]balanceMember{a, b}, threeTopics) {
		if as.member != 0 {
			t.Errorf("%s/%d went to the newcomer while it was owned", as.topic, as.partition)
		}
		got[as.topic]++
	}
	if want := fmt.Sprint(map[string]int{"high": 6, "normal": 6, "batch": 6}); fmt.Sprint(got) != want {
		t.Errorf("kept %v, want %v", got, want)
	}
}

func TestBalancerBelievesTheNewerGeneration(t *testing.T) {
	stale := balanceMember{topics: []string{"high"}, holds: map[topicPartition]bool{{"high", 0}: true}, generation: 3}
	owner := balanceMember{topics: []string{"high"}, holds: map[topicPartition]bool{{"high", 0}: true}, generation: 4}
	for _, a := range assign([]balanceMember{stale, owner}, map[string]int32{"high": 1}) {
		if a.member != 1 {
			t.Errorf("number 0 went to the member that lost it")
		}
	}
}

func TestBalancerLeavesNoTopicUnreadWhileMembersDiffer(t *testing.T) {
	members := []balanceMember{
		{topics: []string{"high"}},
		{topics: []string{"high", "batch"}},
	}
	got := make(map[string]int)
	for _, a := range assign(members, map[string]int32{"high": 4, "batch": 4}) {
		got[a.topic]++
		if a.topic == "batch" && a.member != 1 {
			t.Error("batch went to a member that does not read it")
		}
	}
	if got["high"] != 4 || got["batch"] != 4 {
		t.Errorf("assigned %v, want 4 of each", got)
	}
}
