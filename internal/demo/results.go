package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// resultSource yields result events as they come.
type resultSource interface {
	// poll blocks until there are some or ctx ends.
	poll(ctx context.Context) ([]millrace.TaskResult, error)
}

// tally counts result events of this run's tasks.
type tally struct {
	prefix string

	mu      sync.Mutex
	results map[string]*taskResult
	events  int64
}

type taskResult struct {
	millrace.TaskResult
	events int
}

func newTally(prefix string) *tally {
	return &tally{prefix: prefix, results: make(map[string]*taskResult)}
}

func (t *tally) add(results []millrace.TaskResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range results {
		if !strings.HasPrefix(r.ConversationID, t.prefix) {
			continue
		}
		t.events++
		if known := t.results[r.TaskID]; known != nil {
			known.events++
			continue
		}
		t.results[r.TaskID] = &taskResult{TaskResult: r, events: 1}
	}
}

// done returns how many tasks have a result, and how many events there were.
func (t *tally) done() (tasks, events int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int64(len(t.results)), t.events
}

// run reads until ctx ends.
func (t *tally) run(ctx context.Context, src resultSource) error {
	for {
		results, err := src.poll(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // that is how reading ends
		}
		if err != nil {
			return fmt.Errorf("read results: %w", err)
		}
		t.add(results)
	}
}

// kafkaResults reads the results topic, committed events only, from its end as
// it was when it was opened.
type kafkaResults struct {
	client *kgo.Client
	admin  *kadm.Client
	group  string
}

func openResults(ctx context.Context, topic, group string, opts []kgo.Opt) (*kafkaResults, error) {
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.ClientID("millrace-demo"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	}, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	k := &kafkaResults{client: client, admin: kadm.NewClient(client), group: group}
	ends, err := k.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err == nil && len(ends[topic]) == 0 {
		err = errors.New("the topic has no partitions")
	}
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("open results: end of topic %s: %w", topic, err)
	}
	starts := make(map[int32]kgo.Offset)
	ends.Each(func(o kadm.ListedOffset) { starts[o.Partition] = kgo.NewOffset().At(o.Offset) })
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts})
	return k, nil
}

func (k *kafkaResults) poll(ctx context.Context) ([]millrace.TaskResult, error) {
	fetches := k.client.PollFetches(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var errs []error
	fetches.EachError(func(topic string, partition int32, err error) {
		// What the client mends by itself it does not report.
		errs = append(errs, fmt.Errorf("%s/%d: %w", topic, partition, err))
	})
	var results []millrace.TaskResult
	fetches.EachRecord(func(r *kgo.Record) {
		if !isResult(r) {
			return
		}
		var result millrace.TaskResult
		if err := json.Unmarshal(r.Value, &result); err != nil {
			errs = append(errs, fmt.Errorf("%s/%d offset %d: %w", r.Topic, r.Partition, r.Offset, err))
			return
		}
		results = append(results, result)
	})
	return results, errors.Join(errs...)
}

// isResult tells the end of a task from other events, which handlers may publish
// to the same topic.
func isResult(r *kgo.Record) bool {
	for _, h := range r.Headers {
		if h.Key == "ce_type" {
			switch string(h.Value) {
			case millrace.EventTaskCompleted, millrace.EventTaskFailed, millrace.EventTaskCancelled:
				return true
			}
		}
	}
	return false
}

// lag returns how many records the workers' group has yet to commit.
func (k *kafkaResults) lag(ctx context.Context) (int64, error) {
	lags, err := k.admin.Lag(ctx, k.group)
	if err != nil {
		return 0, err
	}
	lag := lags[k.group]
	if err := lag.Error(); err != nil {
		return 0, err
	}
	return lag.Lag.Total(), nil
}

func (k *kafkaResults) close() { k.client.Close() }
