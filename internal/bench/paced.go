package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// paced sends tasks at an even rate and notes how long each takes to start.
type paced struct {
	client *kgo.Client
	topic  string
	keys   []string
	rate   int
	n      int

	// By task, in nanoseconds since began: handed to the producer, acknowledged,
	// started. 0 is not yet.
	began               time.Time
	sent, acked, starts []atomic.Int64
	left                atomic.Int64
	allStarted          chan struct{}
	closeOnce           sync.Once
}

func newPaced(client *kgo.Client, topic string, rate, n int) (*paced, error) {
	// A record goes out as it comes.
	producer, err := kgo.NewClient(slices.Concat(client.Opts(), []kgo.Opt{kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(0)})...)
	if err != nil {
		return nil, fmt.Errorf("open producer: %w", err)
	}
	p := &paced{
		client: producer, topic: topic, keys: Keys(10_000), rate: rate, n: n, began: time.Now(),
		sent: make([]atomic.Int64, n), acked: make([]atomic.Int64, n), starts: make([]atomic.Int64, n),
		allStarted: make(chan struct{}),
	}
	p.left.Store(int64(n))
	return p, nil
}

func (p *paced) close() { p.client.Close() }

func (p *paced) now() int64 { return int64(time.Since(p.began)) }

// started notes that a task's handler runs.
func (p *paced) started(t *millrace.Task) {
	if p.starts[valueIndex(t.Payload)].CompareAndSwap(0, p.now()) && p.left.Add(-1) == 0 {
		p.closeOnce.Do(func() { close(p.allStarted) })
	}
}

// run sends all tasks and waits until they have started.
func (p *paced) run(ctx context.Context) error {
	var failed atomic.Pointer[error]
	random := rand.NewChaCha8([32]byte{1})
	start := time.Now()
	for i := range p.n {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(p.rate))
		if err := pause(ctx, time.Until(due)); err != nil {
			return err
		}
		record := &kgo.Record{Key: []byte(p.keys[random.Uint64()%uint64(len(p.keys))]), Value: newValue(random, i)}
		p.sent[i].Store(p.now())
		p.client.Produce(ctx, record, func(_ *kgo.Record, err error) {
			p.acked[i].Store(p.now())
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
	}
	err := p.client.Flush(ctx)
	if first := failed.Load(); first != nil {
		err = errors.Join(err, *first)
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", p.topic, err)
	}
	return await(ctx, p.allStarted, startLimit, "not all tasks have started")
}

// waits returns how long tasks waited, sorted, leaving the first ones out: from
// when they were sent, and from when they were available, which is when the
// producer had its acknowledgement. A turn may start before that arrives; it has
// waited 0.
func (p *paced) waits(leaveOut int) (sent, available []time.Duration) {
	for i := leaveOut; i < p.n; i++ {
		start := p.starts[i].Load()
		sent = append(sent, time.Duration(start-p.sent[i].Load()))
		available = append(available, time.Duration(max(0, start-p.acked[i].Load())))
	}
	slices.Sort(sent)
	slices.Sort(available)
	return sent, available
}

// quantile returns the q-quantile of sorted durations in milliseconds: the
// smallest that at least that share does not exceed.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := int(q*float64(len(sorted))+0.999999) - 1
	return float64(sorted[min(max(i, 0), len(sorted)-1)]) / float64(time.Millisecond)
}
