//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// settlePatience bounds how long a pipeline may take to finish what it was given.
const settlePatience = 90 * time.Second

// evidence is what a pipeline has left behind: the results topic, committed
// events only, and the tables.
type evidence struct {
	results       []resultEvent // in the order of their partitions
	completions   []completion
	messages      map[string][]message // by conversation, as they stand
	conversations map[string]conversation
	deadLetters   []string
}

type resultEvent struct {
	id     string // of the event
	key    string
	result millrace.TaskResult
}

type completion struct {
	taskID, conversation, status, problem string
	redrive                               int
}

type message struct {
	seq                   int64
	role, content, taskID string
}

type conversation struct{ version, length int64 }

// settled waits until the pipeline has nothing left to do: every record of a
// task is committed, every event published, no transaction open.
func (p *pipeline) settled(ctx context.Context) error {
	lag, err := p.lag(ctx)
	switch {
	case err != nil:
		return err
	case lag > 0:
		return fmt.Errorf("%d records of tasks are not committed", lag)
	}
	waiting, err := p.count(ctx, "outbox")
	switch {
	case err != nil:
		return err
	case waiting > 0:
		return fmt.Errorf("%d events are not published", waiting)
	}
	stable, err := p.admin.ListCommittedOffsets(ctx, p.topic("results"))
	if err = errors.Join(err, stable.Error()); err != nil {
		return err
	}
	ends, err := p.admin.ListEndOffsets(ctx, p.topic("results"))
	if err = errors.Join(err, ends.Error()); err != nil {
		return err
	}
	for partition, end := range ends[p.topic("results")] {
		if end.Offset != stable[p.topic("results")][partition].Offset {
			return fmt.Errorf("a transaction is open in partition %d of results", partition)
		}
	}
	return nil
}

// gather reads what is there.
func (p *pipeline) gather(ctx context.Context) (evidence, error) {
	e := evidence{messages: make(map[string][]message), conversations: make(map[string]conversation)}
	records, err := p.read(ctx, p.topic("results"))
	if err != nil {
		return e, err
	}
	for _, r := range records {
		event := resultEvent{id: header(r, "ce_id"), key: string(r.Key)}
		if err := json.Unmarshal(r.Value, &event.result); err != nil {
			return e, fmt.Errorf("result at %d/%d: %w", r.Partition, r.Offset, err)
		}
		e.results = append(e.results, event)
	}
	return e, errors.Join(
		p.query(ctx, `SELECT task_id, redrive, COALESCE(conversation_id, ''), status, error FROM millrace.completions`, func(rows pgx.Rows) error {
			var c completion
			err := rows.Scan(&c.taskID, &c.redrive, &c.conversation, &c.status, &c.problem)
			e.completions = append(e.completions, c)
			return err
		}),
		p.query(ctx, `SELECT conversation_id, seq, role, content, task_id FROM millrace.messages ORDER BY conversation_id, seq`, func(rows pgx.Rows) error {
			var (
				id      string
				m       message
				content []byte
			)
			err := rows.Scan(&id, &m.seq, &m.role, &content, &m.taskID)
			m.content = string(content)
			e.messages[id] = append(e.messages[id], m)
			return err
		}),
		p.query(ctx, `SELECT id, version, length FROM millrace.conversations`, func(rows pgx.Rows) error {
			var (
				id string
				c  conversation
			)
			err := rows.Scan(&id, &c.version, &c.length)
			e.conversations[id] = c
			return err
		}),
		p.query(ctx, `SELECT task_id || ' ' || reason || ': ' || detail FROM millrace.dead_letters ORDER BY id`, func(rows pgx.Rows) error {
			var text string
			err := rows.Scan(&text)
			e.deadLetters = append(e.deadLetters, text)
			return err
		}),
	)
}

// read returns all committed records of a topic, in the order of their
// partitions.
func (p *pipeline) read(ctx context.Context, topic string) ([]*kgo.Record, error) {
	starts, err := p.admin.ListStartOffsets(ctx, topic)
	if err = errors.Join(err, starts.Error()); err != nil {
		return nil, err
	}
	ends, err := p.admin.ListCommittedOffsets(ctx, topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return nil, err
	}
	missing := make(map[int32]int64) // the end of each partition that is not read yet
	for partition, end := range ends[topic] {
		if end.Offset > starts[topic][partition].Offset {
			missing[partition] = end.Offset
		}
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords()) // so that the end is seen even if it is a transaction's marker
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	reader.AddConsumePartitions(starts.KOffsets())
	byPartition := make(map[int32][]*kgo.Record)
	for len(missing) > 0 {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= missing[r.Partition]-1 {
				delete(missing, r.Partition)
			}
			if !r.Attrs.IsControl() {
				byPartition[r.Partition] = append(byPartition[r.Partition], r)
			}
		})
	}
	var all []*kgo.Record
	for partition := range int32(len(ends[topic])) {
		all = append(all, byPartition[partition]...)
	}
	return all, nil
}

func header(r *kgo.Record, name string) string {
	for _, h := range r.Headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

// check waits until the pipeline has settled and fails the test for whatever is
// lost, double or out of order. It returns the evidence for further questions.
func (p *pipeline) check(t testing.TB, sent map[string][]sentTask) evidence {
	t.Helper()
	e := p.settle(t, sent)
	e.mustBear(t, sent)
	return e
}

// settle waits until all that was sent is done and returns what is there then.
// What does not come to its end is for the verdict to name.
func (p *pipeline) settle(t testing.TB, sent map[string][]sentTask) evidence {
	t.Helper()
	total := 0
	for _, tasks := range sent {
		total += len(tasks)
	}
	limit := time.NewTimer(settlePatience)
	defer limit.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting; {
		done, err := p.count(t.Context(), "completions")
		if err == nil && done < total {
			err = fmt.Errorf("%d of %d tasks are done", done, total)
		}
		if err == nil {
			err = p.settled(t.Context())
		}
		if err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Errorf("not settled after %s: %v", settlePatience, err)
			waiting = false
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), settlePatience)
	defer cancel()
	e, err := p.gather(ctx)
	if err != nil {
		t.Fatalf("gather evidence: %v", err)
	}
	return e
}

// mustBear fails the test for what the verdict finds.
func (e *evidence) mustBear(t testing.TB, sent map[string][]sentTask) {
	t.Helper()
	v := judge(sent, *e)
	t.Logf("%d conversations, %d completions: %s", len(sent), len(e.completions), v)
	for _, finding := range v.findings {
		t.Error(finding)
	}
}
