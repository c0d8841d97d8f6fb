package kafka

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"millrace/internal/settings"
)

// OtherTaskTopics returns the topics of priorities that are not among the
// settings': other pools serve them. Topics that the user may not see are not
// found.
func OtherTaskTopics(ctx context.Context, adm *kadm.Client, s *settings.Settings) ([]string, error) {
	all, err := adm.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var others []string
	for _, name := range all.Names() {
		if strings.HasPrefix(name, s.TaskTopic("")) && !slices.Contains(s.TaskTopics(), name) {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	return others, nil
}

// TaskLag returns how far the pools are behind in topics of tasks. In each
// partition it is the lag of the pool that is furthest, for a task is done once
// any has done it. Pools are the groups under the topic prefix; where none has
// committed yet, all records count.
func TaskLag(ctx context.Context, adm *kadm.Client, s *settings.Settings, topics ...string) (GroupLag, error) {
	listed, err := adm.ListGroups(ctx)
	if err != nil {
		return GroupLag{}, fmt.Errorf("list groups: %w", err)
	}
	least, err := Lag(ctx, adm, s.Group(), topics...)
	if err != nil {
		return GroupLag{}, err
	}
	for _, name := range listed.Groups() {
		if !strings.HasPrefix(name, s.TopicPrefix) || name == s.Group() {
			continue
		}
		other, err := Lag(ctx, adm, name, topics...)
		if err != nil {
			return GroupLag{}, err
		}
		least.merge(other)
	}
	return least, nil
}

// merge takes the numbers of another group where it has committed more, and its
// word that they are unknown.
func (g *GroupLag) merge(other GroupLag) {
	type place struct {
		topic     string
		partition int32
	}
	theirs := make(map[place]PartitionLag, len(other.Partitions))
	for _, p := range other.Partitions {
		theirs[place{p.Topic, p.Partition}] = p
	}
	for i, p := range g.Partitions {
		o, ok := theirs[place{p.Topic, p.Partition}]
		switch {
		case !ok || p.Error != "":
		case o.Error != "", o.Committed != nil && (p.Committed == nil || *o.Committed > *p.Committed):
			g.Partitions[i] = o
		}
	}
}
