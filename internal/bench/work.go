package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
	"millrace/internal/settings"
)

const (
	workTime = 100 * time.Millisecond
	// workWarmUp passes between the first turn and the steady state.
	workWarmUp = 3 * time.Second
)

// work measures how busy a handler that waits keeps the slots, with many
// conversations over all partitions.
func (r *engineRun) work(ctx context.Context) error {
	s, err := r.records(ctx)
	if err != nil {
		return err
	}
	return r.steady(ctx, "engine.work100ms", s, r.Records, 98)
}

// hot is work with all conversations in one partition.
func (r *engineRun) hot(ctx context.Context) error {
	s, err := r.place.topics(ctx, "hot")
	if err != nil {
		return err
	}
	need := SteadyRecords(r.Slots, r.Window)
	// As many conversations as slots: one that waits for its next record costs.
	if err := preload(ctx, r.place.client, load{
		topic: s.TaskTopic(millrace.Normal), records: need, keys: keysOf(1000, 0, partitions),
	}, r.env.Progress); err != nil {
		return err
	}
	return r.steady(ctx, "engine.hot", s, need, 95)
}

// SteadyRecords returns how many records the steady state of a handler of 100 ms
// needs, with some to spare.
func SteadyRecords(slots int, window time.Duration) int {
	ideal := float64(slots) / workTime.Seconds()
	return int(ideal*(workWarmUp+window).Seconds()*1.1) + 2*slots
}

// steady reports how many turns end in the window, as a share of what the slots
// could do.
func (r *engineRun) steady(ctx context.Context, name string, s settings.Settings, have int, bound float64) error {
	if need := SteadyRecords(r.Slots, r.Window); have < need {
		return fmt.Errorf("%d records do not last for a window of %s: want %d or more, or a shorter window", have, r.Window, need)
	}
	s.Slots = r.Slots
	var (
		handled atomic.Int64
		once    sync.Once
		begun   = make(chan struct{})
	)
	handler := func(ctx context.Context, _ *millrace.Turn) error {
		once.Do(func() { close(begun) })
		if err := pause(ctx, workTime); err != nil {
			return err
		}
		handled.Add(1)
		return nil
	}
	say(r.env.Progress, "%s: a window of %s after %s", name, r.Window, workWarmUp)
	share := 0.0
	err := r.withWorker(ctx, s, handler, func(ctx context.Context, _ *prometheus.Registry) error {
		if err := await(ctx, begun, startLimit, "no turn"); err != nil {
			return err
		}
		if err := pause(ctx, workWarmUp); err != nil {
			return err
		}
		from, start := handled.Load(), time.Now()
		if err := pause(ctx, r.Window); err != nil {
			return err
		}
		ideal := float64(r.Slots) * time.Since(start).Seconds() / workTime.Seconds()
		share = 100 * float64(handled.Load()-from) / ideal
		return nil
	})
	if err != nil {
		return err
	}
	return r.report(AtLeast(name, share, "% of ideal", bound))
}
