//go:build integration

package integration

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// submitAt sends a task that is to run at a time.
func (p *pipeline) submitAt(t *testing.T, key, conversation, payload string, runAt time.Time) string {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: oneShot}
	id, err := submit(t.Context(), client, *p.api.Load(), key,
		taskBody{Conversation: conversation, Type: "scenario", Priority: "normal", Payload: []byte(payload), RunAt: runAt})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (p *pipeline) owner(ctx context.Context) (owner string) {
	_ = p.query(ctx, "SELECT COALESCE(owner::text, '') FROM millrace.release_leader", func(rows pgx.Rows) error { return rows.Scan(&owner) })
	return owner
}

// One of two workers is killed before the time has come, the one that leads.
func TestScheduledTasksRunAtTheirTime(t *testing.T) {
	p := newPipeline(t, services{})
	p.startIngest()
	leader := p.start("worker")
	eventually(t, startPatience, "the first worker leads", func() error {
		if p.owner(t.Context()) == "" {
			return fmt.Errorf("nobody leads")
		}
		return nil
	})
	first := p.owner(t.Context())
	p.start("worker")

	const tasks = 20
	runAt := time.Now().Add(6 * time.Second)
	var ids []string
	for i := range tasks {
		ids = append(ids, p.submitAt(t, "", "c"+strconv.Itoa(i%2), strconv.Itoa(i), runAt))
	}
	repeated := p.submitAt(t, "key", "repeated", `"once"`, runAt)
	if again := p.submitAt(t, "key", "repeated", `"once"`, runAt.Add(time.Second)); again != repeated {
		t.Errorf("the repeat is task %s, not %s", again, repeated)
	}
	cancelled := p.submitAt(t, "", "c0", `"cancelled"`, runAt)
	far := p.submitAt(t, "", "c0", `"far"`, time.Now().Add(24*time.Hour))
	var got millrace.TaskResult
	if err := get(*p.api.Load()+"/v1/tasks/"+far, http.StatusOK, &got); err != nil || got.Status != millrace.StatusQueued || time.Until(got.RunAt) < 23*time.Hour {
		t.Errorf("%+v, %v: want a queued task that waits for its time", got, err)
	}
	explain := launch(t, "millrace explain", p.env, "explain", far)
	if code := explain.wait(startPatience); code != 0 {
		t.Errorf("millrace explain ended with code %d", code)
	}
	explain.says("state +held back until .*, in 2[34]h", time.Second)
	if code := p.cancel(t, cancelled); code != http.StatusOK {
		t.Errorf("cancel: %d", code)
	}
	leader.kill()

	for _, id := range append(slices.Clone(ids), repeated) {
		if r := p.result(t, id); r.Status != millrace.StatusCompleted || r.StartedAt.Before(runAt.Truncate(time.Microsecond)) {
			t.Errorf("%s is %s (%s), and began %s after its time", id, r.Status, r.Error, r.StartedAt.Sub(runAt))
		}
	}
	if p.owner(t.Context()) == first {
		t.Error("the dead worker still leads")
	}
	repeat := p.submitAt(t, "key", "repeated", `"once"`, time.Now().Add(time.Hour))
	if repeat != repeated {
		t.Errorf("the late repeat is task %s", repeat)
	}
	events := p.resultEvents(t, append(ids, repeated, cancelled)...)
	for _, id := range append(ids, repeated) {
		if !slices.Equal(events[id], []string{"task.completed"}) {
			t.Errorf("result events of %s: %v", id, events[id])
		}
	}
	if n, err := p.count(t.Context(), "completions"); err != nil || n != tasks+2 {
		t.Errorf("%d completions, want %d: %v", n, tasks+2, err)
	}
	for c := range 2 {
		var said []string
		if err := p.query(t.Context(), "SELECT convert_from(content, 'UTF8') FROM millrace.messages WHERE conversation_id = $1 AND role = 'user' ORDER BY seq", func(rows pgx.Rows) error {
			said = append(said, "")
			return rows.Scan(&said[len(said)-1])
		}, "c"+strconv.Itoa(c)); err != nil {
			t.Fatal(err)
		}
		var want []string
		for i := c; i < tasks; i += 2 {
			want = append(want, strconv.Itoa(i))
		}
		if !slices.Equal(said, want) {
			t.Errorf("c%d was said %v, want %v", c, said, want)
		}
	}
	p.checkReleasedRecords(t, tasks+1)
	eventually(t, settlePatience, "everything is committed", func() error {
		lag, err := p.lag(t.Context())
		if err == nil && lag > 0 {
			err = fmt.Errorf("%d offsets to go", lag)
		}
		return err
	})
	var held []string
	if err := p.query(t.Context(), "SELECT task_id FROM millrace.scheduled WHERE released_at IS NULL", func(rows pgx.Rows) error {
		held = append(held, "")
		return rows.Scan(&held[len(held)-1])
	}); err != nil || !slices.Equal(held, []string{far}) {
		t.Errorf("%v are held back, want %s alone: %v", held, far, err)
	}
}

// checkReleasedRecords checks that the log holds n records for read_committed
// readers, each where Kafka's own partitioner puts its key.
func (p *pipeline) checkReleasedRecords(t *testing.T, n int) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...), kgo.ConsumeTopics(p.topic("tasks.normal")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := p.admin.ListEndOffsets(t.Context(), p.topic("tasks.normal"))
	if err != nil {
		t.Fatal(err)
	}
	to := make(map[int32]int64)
	for _, end := range ends[p.topic("tasks.normal")] {
		if end.Offset > 0 {
			to[end.Partition] = end.Offset
		}
	}
	found := 0
	ctx, cancel := context.WithTimeout(t.Context(), settlePatience)
	defer cancel()
	for len(to) > 0 && ctx.Err() == nil {
		client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			if r.Offset+1 == to[r.Partition] {
				delete(to, r.Partition)
			}
			if r.Attrs.IsControl() {
				return
			}
			found++
			if want := partitionOf(string(r.Key)); r.Partition != want {
				t.Errorf("a record of %s lies in partition %d, want %d", r.Key, r.Partition, want)
			}
		})
	}
	if found != n {
		t.Errorf("%d records in the log, want %d", found, n)
	}
}
