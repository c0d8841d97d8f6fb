package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/internal/kafka"
	"millrace/internal/settings"
)

// startLimit is how long the first record may take: a group forms, pools
// connect.
const startLimit = time.Minute

// records returns the settings of a worker whose topic of normal tasks holds the
// records that noop, poll and work100ms share.
func (r *engineRun) records(ctx context.Context) (settings.Settings, error) {
	s, err := r.place.topics(ctx, shared)
	if err != nil {
		return s, err
	}
	return s, preload(ctx, r.place.client, load{
		topic: s.TaskTopic(millrace.Normal), records: r.Records, keys: Keys(10_000),
	}, r.env.Progress)
}

// poll measures how fast the client alone reads the records: the limit of the
// machine.
func (r *engineRun) poll(ctx context.Context) error {
	s, err := r.records(ctx)
	if err != nil {
		return err
	}
	opts, err := kafka.Options(&s, "bench", r.env.Log)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(opts,
		kgo.ConsumeTopics(s.TaskTopic(millrace.Normal)), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
	)...)
	if err != nil {
		return fmt.Errorf("open consumer: %w", err)
	}
	defer client.Close()
	stop := r.env.Measuring()
	defer stop()
	began := time.Now()
	before, _ := cpuTime()
	for n := 0; n < r.Records; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		n += fetches.NumRecords()
	}
	rate := float64(r.Records) / time.Since(began).Seconds()
	if err := r.reportCPU("engine.poll.cpu", before, r.Records, "record"); err != nil {
		return err
	}
	return r.report(Plain("engine.poll", rate, "records/s"))
}

// noop measures how fast a handler that does nothing is called, and that every
// record was then committed.
func (r *engineRun) noop(ctx context.Context) error {
	s, err := r.records(ctx)
	if err != nil {
		return err
	}
	s.Slots = r.Slots
	var (
		handled     atomic.Int64
		first, last atomic.Int64
		all         = make(chan struct{})
		wanted      = int64(r.Records)
	)
	handler := func(context.Context, *millrace.Turn) error {
		switch handled.Add(1) {
		case 1:
			first.Store(time.Now().UnixNano())
		case wanted:
			last.Store(time.Now().UnixNano())
			close(all)
		}
		return nil
	}
	say(r.env.Progress, "engine.noop: %d records, %d slots", r.Records, r.Slots)
	before, _ := cpuTime()
	err = r.withWorker(ctx, s, handler, func(ctx context.Context, _ *prometheus.Registry) error {
		return r.watch(ctx, &handled, all)
	})
	if err != nil {
		return err
	}
	if err := r.checkCommitted(ctx, &s, wanted); err != nil {
		return err
	}
	if err := r.reportCPU("engine.noop.cpu", before, r.Records, "record"); err != nil {
		return err
	}
	rate := float64(wanted) / time.Duration(last.Load()-first.Load()).Seconds()
	return r.report(AtLeast("engine.noop", rate, "records/s", 5*r.PeerRate))
}

// checkCommitted reports when the group has not committed just the records that
// were handled.
func (r *run) checkCommitted(ctx context.Context, s *settings.Settings, wanted int64) error {
	offsets, err := r.place.admin.FetchOffsets(ctx, s.Group())
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return fmt.Errorf("read committed offsets: %w", err)
	}
	committed := int64(0)
	for _, o := range offsets.Sorted() {
		committed += max(o.At, 0)
	}
	if committed != wanted {
		return fmt.Errorf("the group has committed %d records of %d", committed, wanted)
	}
	return nil
}
