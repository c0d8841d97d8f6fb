package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
)

var errBacklogGone = errors.New("the backlog did not last: more records are needed")

// memoryRecords fit into what one priority may hold with the default bounds.
const memoryRecords = 50_000

// memory measures what a record costs that waits for its turn.
func (r *engineRun) memory(ctx context.Context) error {
	s, err := r.place.topics(ctx, "memory")
	if err != nil {
		return err
	}
	s.Slots, s.Reserved = 1, nil
	var (
		first   atomic.Bool
		warm    = make(chan struct{})
		release = make(chan struct{})
	)
	// The first turn says that the worker is up; the second one holds the only slot.
	handler := func(ctx context.Context, _ *millrace.Turn) error {
		if first.CompareAndSwap(false, true) {
			close(warm)
			return nil
		}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return errors.New("not to be finished")
	}
	s.DrainTimeout = time.Second
	perRecord := 0.0
	say(r.env.Progress, "engine.memory: %d records", memoryRecords)
	err = r.withWorker(ctx, s, handler, func(ctx context.Context, registry *prometheus.Registry) error {
		// Whatever happens, the worker is not to wait for the held slot.
		defer close(release)
		if err := joined(ctx, registry, len(s.Priorities)); err != nil {
			return err
		}
		topic := s.TaskTopic(millrace.Normal)
		if err := preload(ctx, r.place.client, load{topic: topic, records: 1, keys: Keys(1)}, r.env.Progress); err != nil {
			return err
		}
		if err := await(ctx, warm, startLimit, "no turn"); err != nil {
			return err
		}
		if _, err := settled(ctx, registry); err != nil {
			return err
		}
		before := heap()
		if err := preload(ctx, r.place.client, load{topic: topic, records: memoryRecords, keys: Keys(10_000), more: true}, r.env.Progress); err != nil {
			return err
		}
		waiting, err := settled(ctx, registry)
		if err != nil {
			return err
		}
		if waiting < memoryRecords*valueSize {
			return fmt.Errorf("records of %.0f bytes wait in memory, fewer than %d", waiting, memoryRecords)
		}
		perRecord = float64(heap()-before) / memoryRecords
		return nil
	})
	if err != nil {
		return err
	}
	return r.report(AtMost("engine.memory", perRecord, "bytes/record", 2*valueSize+600))
}

// heap returns the bytes that live objects take.
func heap() int64 {
	// What the first collection leaves in pools, the second frees.
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // far below
}

// settled returns the bytes that wait in memory once they have not changed for
// two seconds.
func settled(ctx context.Context, registry *prometheus.Registry) (float64, error) {
	var last float64
	for still := 0; still < 4; still++ {
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return 0, err
		}
		now, err := metric(registry, "millrace_consumer_waiting_bytes")
		if err != nil {
			return 0, err
		}
		if now != last {
			last, still = now, 0
		}
	}
	return last, nil
}

// joined waits until a worker has got all partitions of its priorities.
func joined(ctx context.Context, registry *prometheus.Registry, priorities int) error {
	deadline := time.Now().Add(startLimit)
	for {
		n, err := metric(registry, "millrace_consumer_partitions")
		if err != nil {
			return err
		}
		if int(n) == priorities*partitions {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the worker has %d partitions of %d after %s", int(n), priorities*partitions, startLimit)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
