//go:build integration

package integration

import (
	"context"
	"fmt"
)

// shares returns the partitions that each named worker owns. It fails unless the
// group has settled and every partition of every priority is owned.
func (p *pipeline) shares(ctx context.Context) (map[string]map[int32]bool, error) {
	groups, err := p.admin.DescribeGroups(ctx, p.group())
	if err != nil {
		return nil, err
	}
	group := groups[p.group()]
	if group.Err != nil {
		return nil, group.Err
	}
	if group.State != "Stable" {
		return nil, fmt.Errorf("the group is %s", group.State)
	}
	shares, total := make(map[string]map[int32]bool), 0
	for _, member := range group.Members {
		name := member.MemberID
		if member.InstanceID != nil {
			name = *member.InstanceID
		}
		shares[name] = make(map[int32]bool)
		assigned, ok := member.Assigned.AsConsumer()
		if !ok {
			return nil, fmt.Errorf("the assignment of %s cannot be read", name)
		}
		for _, topic := range assigned.Topics {
			total += len(topic.Partitions)
			for _, partition := range topic.Partitions {
				shares[name][partition] = true
			}
		}
	}
	if total != partitions*len(priorities) {
		return nil, fmt.Errorf("%d of %d partitions are assigned", total, partitions*len(priorities))
	}
	return shares, nil
}

// awaitShares waits until these workers share the partitions.
func (p *pipeline) awaitShares(names ...string) (shares map[string]map[int32]bool) {
	p.t.Helper()
	eventually(p.t, startPatience, fmt.Sprintf("workers %v share the partitions", names), func() error {
		var err error
		if shares, err = p.shares(p.t.Context()); err != nil {
			return err
		}
		for _, name := range names {
			if len(shares[name]) == 0 {
				return fmt.Errorf("%s has none of %v", name, shares)
			}
		}
		return nil
	})
	return shares
}
