package consumer

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func member(topics ...string) balanceMember {
	return balanceMember{topics: topics}
}

// take gives members what a rebalance assigned to them.
func take(members []balanceMember, plan []assigned, generation int32) {
	for i := range members {
		members[i].holds = make(map[topicPartition]bool)
		members[i].generation = generation
	}
	for _, a := range plan {
		members[a.member].holds[topicPartition{a.topic, a.partition}] = true
	}
}

// known returns the topics that a leader is told of: those that members read.
func known(members []balanceMember, topics map[string]int32) map[string]int32 {
	out := make(map[string]int32)
	for _, m := range members {
		for _, topic := range m.topics {
			out[topic] = topics[topic]
		}
	}
	return out
}

// TestBalancerNeverGivesAwayWhatAnotherStillHolds plays roll-outs that change
// what members read, in which a number may be held in parts.
func TestBalancerNeverGivesAwayWhatAnotherStillHolds(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	choices := [][]string{{"high"}, {"batch", "high"}, topicList()}
	for range 100 {
		numbers := 1 + rng.Int32N(12)
		topics := map[string]int32{"high": numbers, "normal": numbers, "batch": numbers}
		var members []balanceMember
		generation := int32(0)
		for range 12 {
			if n := len(members); n > 0 && rng.IntN(3) == 0 {
				i := rng.IntN(n)
				members = append(members[:i], members[i+1:]...)
			} else {
				// Members come in no order of age.
				i := rng.IntN(n + 1)
				members = append(members[:i], append([]balanceMember{member(choices[rng.IntN(len(choices))]...)}, members[i:]...)...)
			}
			lost := true
			for rounds := 0; lost; rounds++ {
				if rounds == 6 {
					t.Fatal("members still give partitions up after 6 rebalances")
				}
				generation++
				plan := assign(members, known(members, topics))
				before := make(map[topicPartition]int)
				for i, m := range members {
					for tp := range m.holds {
						before[tp] = i
					}
				}
				kept := 0
				for _, a := range plan {
					owner, held := before[topicPartition{a.topic, a.partition}]
					if held && owner != a.member {
						t.Fatalf("%s/%d goes to %d while %d holds it", a.topic, a.partition, a.member, owner)
					}
					if held {
						kept++
					}
				}
				// A member that has lost something joins again.
				lost = kept < len(before)
				take(members, plan, generation)
			}
			whole := false
			for _, m := range members {
				whole = whole || m.reads(slices.Sorted(maps.Keys(known(members, topics))))
			}
			owner := make(map[int32]int)
			for i, m := range members {
				for tp := range m.holds {
					if other, ok := owner[tp.partition]; whole && ok && other != i {
						t.Fatalf("number %d in the hands of %d and %d although one reads all topics", tp.partition, other, i)
					}
					owner[tp.partition] = i
				}
			}
			read := make(map[string]bool)
			for _, m := range members {
				for _, topic := range m.topics {
					read[topic] = true
				}
			}
			held := 0
			for _, m := range members {
				held += len(m.holds)
			}
			if want := len(read) * int(numbers); held != want {
				t.Fatalf("%d partitions held once all is settled, want %d", held, want)
			}
		}
	}
}

func TestBalancerMetadataTellsWhatTheMemberOwnsAndSinceWhen(t *testing.T) {
	owned := map[string][]int32{"high": {0, 3}, "batch": {3}}
	raw := coPartitioned{}.JoinGroupMetadata([]string{"batch", "high"}, owned, 17)
	var meta kmsg.ConsumerMemberMetadata
	if err := meta.ReadFrom(raw); err != nil {
		t.Fatal(err)
	}
	if meta.Version != 3 || meta.Generation != 17 || len(meta.Topics) != 2 || len(meta.OwnedPartitions) != 2 {
		t.Errorf("metadata %+v", meta)
	}
	// Two members as a leader sees them: the first owns number 3, the second
	// claims it from an older generation.
	stale := coPartitioned{}.JoinGroupMetadata([]string{"batch", "high"}, map[string][]int32{"high": {3}, "batch": {3}}, 16)
	b, topics, err := coPartitioned{}.MemberBalancer([]kmsg.JoinGroupResponseMember{
		{MemberID: "a", ProtocolMetadata: stale}, {MemberID: "b", ProtocolMetadata: raw},
	})
	if err != nil || len(topics) != 2 {
		t.Fatalf("topics %v, error %v", topics, err)
	}
	plan := coPartitioned{}.Balance(b.(*kgo.ConsumerBalancer), map[string]int32{"high": 4, "batch": 4})
	for _, a := range plan.IntoSyncAssignment() {
		got, err := coPartitioned{}.ParseSyncAssignment(a.MemberAssignment)
		if err != nil {
			t.Fatal(err)
		}
		for topic, numbers := range got {
			for _, n := range numbers {
				if n == 3 && a.MemberID != "b" {
					t.Errorf("%s/3 went to the member that lost it", topic)
				}
			}
		}
	}
}
