package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// GroupLag says how far a consumer group is behind. A nil number is unknown,
// which is not zero.
type GroupLag struct {
	Group string `json:"group"`
	// State is Kafka's word for what the group is doing, "none" when Kafka does not
	// know the group, and "unknown" when Kafka did not answer.
	State      string         `json:"state"`
	Members    *int           `json:"members"`
	Partitions []PartitionLag `json:"partitions"`
}

// PartitionLag is the lag in one partition.
type PartitionLag struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	// Committed is nil also when the group has committed nothing yet; Lag then
	// counts from the oldest record.
	Committed *int64 `json:"committed"`
	End       *int64 `json:"end"`
	Lag       *int64 `json:"lag"`
	// Error says why a number is unknown.
	Error string `json:"error,omitempty"`
}

// Total returns the sum over all partitions of topic, or of all topics when
// topic is empty. It is unknown when the lag of one partition is.
func (g GroupLag) Total(topic string) (lag int64, known bool) {
	known = len(g.Partitions) > 0
	for _, p := range g.Partitions {
		switch {
		case topic != "" && p.Topic != topic:
		case p.Lag == nil:
			known = false
		default:
			lag += *p.Lag
		}
	}
	return lag, known
}

// Lag returns how far a group is behind in topics. It asks for each part on its
// own: kadm's Lag calls a live group of the newer protocol dead, with a lag of
// zero. A part that does not answer leaves its numbers unknown. The error is
// for when Kafka says nothing at all.
func Lag(ctx context.Context, adm *kadm.Client, group string, topics ...string) (GroupLag, error) {
	details, err := adm.ListTopics(ctx, topics...)
	if err != nil {
		return GroupLag{}, fmt.Errorf("lag of %s: list topics: %w", group, err)
	}
	g := GroupLag{Group: group}
	g.State, g.Members = describe(ctx, adm, group)

	commits, commitErr := adm.FetchOffsets(ctx, group)
	if errors.Is(commitErr, kerr.GroupIDNotFound) {
		commits, commitErr = nil, nil // it has never committed
	}
	starts, startErr := adm.ListStartOffsets(ctx, topics...)
	ends, endErr := adm.ListEndOffsets(ctx, topics...)
	for _, topic := range topics {
		detail := details[topic]
		if detail.Err != nil {
			g.Partitions = append(g.Partitions, PartitionLag{Topic: topic, Partition: -1, Error: detail.Err.Error()})
			continue
		}
		for _, partition := range detail.Partitions.Sorted() {
			p := PartitionLag{Topic: topic, Partition: partition.Partition}
			var failures []error
			end, err := at(ends, endErr, topic, p.Partition)
			failures = append(failures, err)
			if err == nil {
				p.End = &end
			}
			from, err := at(starts, startErr, topic, p.Partition)
			switch commit, ok := commits.Lookup(topic, p.Partition); {
			case commitErr != nil:
				err = commitErr
			case ok && commit.Err != nil:
				err = commit.Err
			case ok && commit.At >= 0:
				committed := commit.At
				// Records below the oldest are gone and wait for nobody.
				p.Committed, from, err = &committed, max(committed, from), nil
			}
			failures = append(failures, err)
			if err = errors.Join(failures...); err != nil {
				p.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
			} else {
				lag := max(end-from, 0)
				p.Lag = &lag
			}
			g.Partitions = append(g.Partitions, p)
		}
	}
	slices.SortStableFunc(g.Partitions, func(a, b PartitionLag) int {
		return slices.Index(topics, a.Topic) - slices.Index(topics, b.Topic)
	})
	return g, nil
}

func at(listed kadm.ListedOffsets, err error, topic string, partition int32) (int64, error) {
	offset, ok := listed.Lookup(topic, partition)
	switch {
	case ok && offset.Err != nil:
		return 0, offset.Err
	case ok:
		return offset.Offset, nil
	case err != nil:
		return 0, err
	}
	return 0, errors.New("no answer for this partition")
}

// describe asks for the group as one of the newer protocol (KIP-848) and then
// as a classic one: Kafka answers only to the right question.
func describe(ctx context.Context, adm *kadm.Client, group string) (state string, members *int) {
	newer, newerErr := adm.DescribeConsumerGroups(ctx, group)
	if one, ok := newer[group]; ok && one.Err == nil {
		n := len(one.Members)
		return one.State, &n
	}
	classic, err := adm.DescribeGroups(ctx, group)
	one, ok := classic[group]
	switch {
	case ok && errors.Is(one.Err, kerr.GroupIDNotFound), ok && one.Err == nil && one.State == "Dead":
		// No classic group, then, and no newer one unless asking for that failed.
		if err := errors.Join(newerErr, newer[group].Err); err == nil || errors.Is(err, kerr.GroupIDNotFound) || errors.Is(err, kerr.UnsupportedVersion) {
			n := 0
			return "none", &n
		}
		return "unknown", nil
	case err != nil || !ok || one.Err != nil:
		return "unknown", nil
	}
	n := len(one.Members)
	return one.State, &n
}
