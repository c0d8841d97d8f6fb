package consumer

import (
	"cmp"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// balancerProtocol is what all members of a group must agree on.
const balancerProtocol = "millrace-copartitioned"

// Balancer returns the group balancer of workers: cooperative and sticky like
// Kafka's cooperative-sticky, but over partition numbers. Whoever owns number n
// owns partition n of every topic, so that all priorities of a conversation
// meet in one worker. When number n has to move, it is withheld as a whole for
// one round, until its owner has given it up.
func Balancer() kgo.GroupBalancer { return coPartitioned{} }

type coPartitioned struct{}

func (coPartitioned) ProtocolName() string { return balancerProtocol }

func (coPartitioned) IsCooperative() bool { return true }

func (coPartitioned) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	return kgo.ParseConsumerSyncAssignment(assignment)
}

// JoinGroupMetadata tells the leader what this member owns, and since when.
func (coPartitioned) JoinGroupMetadata(topics []string, owned map[string][]int32, generation int32) []byte {
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Version = 3
	meta.Topics = topics
	meta.Generation = generation
	for _, topic := range slices.Sorted(maps.Keys(owned)) {
		t := kmsg.NewConsumerMemberMetadataOwnedPartition()
		t.Topic = topic
		t.Partitions = owned[topic]
		meta.OwnedPartitions = append(meta.OwnedPartitions, t)
	}
	return meta.AppendTo(nil)
}

func (b coPartitioned) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	cb, err := kgo.NewConsumerBalancer(b, members)
	if err != nil {
		return nil, nil, err
	}
	return cb, cb.MemberTopics(), nil
}

// Balance implements [kgo.ConsumerBalancerBalance].
func (coPartitioned) Balance(b *kgo.ConsumerBalancer, topics map[string]int32) kgo.IntoSyncAssignment {
	var (
		members []balanceMember
		joined  []*kmsg.JoinGroupResponseMember
	)
	b.EachMember(func(m *kmsg.JoinGroupResponseMember, meta *kmsg.ConsumerMemberMetadata) {
		bm := balanceMember{topics: meta.Topics, generation: meta.Generation, owned: make(map[int32]bool)}
		for _, t := range meta.OwnedPartitions {
			for _, p := range t.Partitions {
				bm.owned[p] = true
			}
		}
		members = append(members, bm)
		joined = append(joined, m)
	})
	plan := b.NewPlan()
	for _, a := range assign(members, topics) {
		plan.AddPartition(joined[a.member], a.topic, a.partition)
	}
	return plan
}

type balanceMember struct {
	topics     []string
	owned      map[int32]bool
	generation int32
}

type assigned struct {
	member    int
	topic     string
	partition int32
}

// assign distributes partition numbers evenly and moves no more than that
// takes. Members come in a stable order, which settles ties.
func assign(members []balanceMember, topics map[string]int32) []assigned {
	if len(members) == 0 {
		return nil
	}
	var numbers int32
	for _, n := range topics {
		numbers = max(numbers, n)
	}
	owner := owners(members, numbers)
	target := spread(owner, len(members))

	var out []assigned
	for n := range numbers {
		if owner[n] >= 0 && owner[n] != target[n] {
			continue // withheld until its owner has given it up
		}
		for _, topic := range slices.Sorted(maps.Keys(topics)) {
			if n >= topics[topic] {
				continue
			}
			if m := subscriber(members, target[n], topic); m >= 0 {
				out = append(out, assigned{member: m, topic: topic, partition: n})
			}
		}
	}
	return out
}

// owners returns who holds each number, -1 for nobody. Of two that claim one,
// the one with the newer generation is right: the other has missed a rebalance
// and lost it there.
func owners(members []balanceMember, numbers int32) []int {
	owner := make([]int, numbers)
	for n := range owner {
		owner[n] = -1
	}
	for i, m := range members {
		for n := range m.owned {
			if n >= numbers {
				continue
			}
			if held := owner[n]; held < 0 || members[held].generation < m.generation {
				owner[n] = i
			}
		}
	}
	return owner
}

// spread returns who is to hold each number: every member an equal share, give
// or take one, and as many of its own as that allows.
func spread(owner []int, members int) []int {
	held := make([][]int, members)
	for n, m := range owner {
		if m >= 0 {
			held[m] = append(held[m], n)
		}
	}
	// The members that hold most keep the one more that an uneven share leaves.
	order := make([]int, members)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(held[b]), len(held[a])) })
	quota := make([]int, members)
	for rank, m := range order {
		quota[m] = len(owner) / members
		if rank < len(owner)%members {
			quota[m]++
		}
	}
	target := make([]int, len(owner))
	for n := range target {
		target[n] = -1
	}
	for m, numbers := range held {
		for _, n := range numbers[:min(len(numbers), quota[m])] {
			target[n] = m
			quota[m]--
		}
	}
	next := 0
	for n := range target {
		if target[n] >= 0 {
			continue
		}
		for quota[order[next]] == 0 {
			next++
		}
		target[n] = order[next]
		quota[order[next]]--
	}
	return target
}

// subscriber returns the wanted member if it reads the topic, or else any that
// does: while a pool's priorities are being changed, members differ, and a
// partition that nobody reads would be worse than one apart from its siblings.
func subscriber(members []balanceMember, wanted int, topic string) int {
	for i := range members {
		m := (wanted + i) % len(members)
		if slices.Contains(members[m].topics, topic) {
			return m
		}
	}
	return -1
}
