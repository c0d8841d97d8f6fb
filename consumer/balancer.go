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
		bm := balanceMember{
			topics: meta.Topics, generation: meta.Generation, holds: make(map[topicPartition]bool),
		}
		for _, t := range meta.OwnedPartitions {
			for _, p := range t.Partitions {
				bm.holds[topicPartition{t.Topic, p}] = true
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
	holds      map[topicPartition]bool
	generation int32
}

func (m *balanceMember) reads(topics []string) bool {
	for _, topic := range topics {
		if !slices.Contains(m.topics, topic) {
			return false
		}
	}
	return true
}

type assigned struct {
	member    int
	topic     string
	partition int32
}

// assign distributes partition numbers evenly and moves no more than that
// takes. Members come in a stable order, which settles ties.
func assign(members []balanceMember, topics map[string]int32) []assigned {
	var out []assigned
	for _, s := range shares(members, slices.Sorted(maps.Keys(topics))) {
		out = append(out, s.assign(members, topics)...)
	}
	return out
}

// share is a set of topics and the members that divide their numbers.
type share struct {
	topics  []string
	members []int
}

// shares returns a single share as long as any member reads all topics: while
// the priorities of a pool are being changed and members differ, only those that
// read all get numbers, because a number in two hands would mean two turns of a
// conversation at once. Without such a member, topics with the same readers form
// a share: apart from each other is better than unread.
func shares(members []balanceMember, topics []string) []share {
	readers := func(topics []string) (found []int) {
		for i := range members {
			if members[i].reads(topics) {
				found = append(found, i)
			}
		}
		return found
	}
	if all := readers(topics); len(all) > 0 {
		return []share{{topics, all}}
	}
	var out []share
	for _, topic := range topics {
		who := readers([]string{topic})
		if len(who) == 0 {
			continue
		}
		i := slices.IndexFunc(out, func(s share) bool { return slices.Equal(s.members, who) })
		if i < 0 {
			i = len(out)
			out = append(out, share{members: who})
		}
		out[i].topics = append(out[i].topics, topic)
	}
	return out
}

func (s share) assign(members []balanceMember, topics map[string]int32) []assigned {
	var numbers int32
	for _, topic := range s.topics {
		numbers = max(numbers, topics[topic])
	}
	owner := s.owners(members, numbers)
	target := spread(owner, len(s.members))
	var out []assigned
	for n := range numbers {
		m := s.members[target[n]]
		var plan []assigned
		moves := false
		for _, topic := range s.topics {
			if n < topics[topic] {
				plan = append(plan, assigned{member: m, topic: topic, partition: n})
				moves = moves || heldByAnother(members, m, topicPartition{topic, n})
			}
		}
		if !moves { // else withheld as a whole until its owner has given it up
			out = append(out, plan...)
		}
	}
	return out
}

// owners returns who of the share's members holds each number, by index, -1 for
// nobody. Of two that claim one, the one with the newer generation is right: the
// other has missed a rebalance and lost it there.
func (s share) owners(members []balanceMember, numbers int32) []int {
	owner := make([]int, numbers)
	for n := range owner {
		owner[n] = -1
	}
	for i, m := range s.members {
		for tp := range members[m].holds {
			if tp.partition >= numbers || !slices.Contains(s.topics, tp.topic) {
				continue
			}
			n := tp.partition
			if held := owner[n]; held < 0 || members[s.members[held]].generation < members[m].generation {
				owner[n] = i
			}
		}
	}
	return owner
}

// heldByAnother reports whether a partition that is to go to member m has an
// owner that must give it up first. A claim from an older generation than m's
// own is one that its owner has lost.
func heldByAnother(members []balanceMember, m int, tp topicPartition) bool {
	newest := int32(-1)
	if members[m].holds[tp] {
		newest = members[m].generation
	}
	for i := range members {
		if i != m && members[i].holds[tp] && members[i].generation >= newest {
			return true
		}
	}
	return false
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
