//go:build integration

package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What the scenarios rest on: a fault that is planted in the results topic or in
// PostgreSQL is found.
func TestCheckerFindsPlantedFaults(t *testing.T) {
	p := newPipeline(t, services{})
	p.startIngest()
	p.start("worker")
	sent := p.send(load{conversations: 8, turns: 4, rate: 200}).wait()
	clean := p.check(t, sent)
	if t.Failed() {
		return
	}
	victim := sent["conversation-0001"][1]
	found := func(t *testing.T, want, word string) {
		t.Helper()
		e, err := p.gather(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		v := judge(sent, e)
		if got := v.String(); got != want {
			t.Errorf("%s, want %s: %v", got, want, v.findings)
		}
		if !slices.ContainsFunc(v.findings, func(f string) bool { return strings.HasPrefix(f, word) && strings.Contains(f, victim.id) }) {
			t.Errorf("no finding names task %s: %v", victim.id, v.findings)
		}
	}

	// A completion that is gone, and put back.
	execute(t, p, `CREATE TABLE kept AS SELECT * FROM millrace.completions WHERE task_id = $1`, victim.id)
	execute(t, p, `DELETE FROM millrace.completions WHERE task_id = $1`, victim.id)
	found(t, "lost=1 duplicate=0 reordered=0", "lost")
	execute(t, p, `INSERT INTO millrace.completions SELECT * FROM kept`)

	// A second result event: the order of the results then has it twice as well.
	records, err := p.read(t.Context(), p.topic("results"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if header(r, "ce_id") == victim.id+".result" {
			again := kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}
			if err := p.client.ProduceSync(t.Context(), &again).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	found(t, "lost=0 duplicate=1 reordered=1", "duplicate")

	for name, plant := range plants(victim) {
		t.Run(name, func(t *testing.T) {
			e := clean
			e.results, e.completions = slices.Clone(clean.results), slices.Clone(clean.completions)
			e.messages = map[string][]message{}
			for id, history := range clean.messages {
				e.messages[id] = slices.Clone(history)
			}
			want := plant(&e)
			v := judge(sent, e)
			if n := map[string]int{"lost": v.lost, "duplicate": v.duplicate, "reordered": v.reordered}[want]; n == 0 {
				t.Errorf("%v, want %s: %v", v, want, v.findings)
			}
		})
	}
}

// What a broken engine would do, done to a real one: an offset is committed past a
// task that nobody has run, and a task stands in the log under a second id.
func TestCheckerFindsALostOffsetAndADouble(t *testing.T) {
	p := newPipeline(t, services{})
	p.startIngest()
	sent := p.send(load{conversations: 8, turns: 3, rate: 200}).wait()
	conversation := "conversation-0002" // all of one priority
	first, second := sent[conversation][0], sent[conversation][1]
	records, err := p.read(t.Context(), p.topic("tasks."+first.priority))
	if err != nil {
		t.Fatal(err)
	}
	var skip kadm.Offsets
	for _, r := range records {
		switch header(r, "ce_id") {
		case first.id:
			skip.Add(kadm.Offset{Topic: r.Topic, Partition: r.Partition, At: r.Offset + 1, LeaderEpoch: -1})
			if slices.ContainsFunc(records, func(o *kgo.Record) bool { return o.Partition == r.Partition && o.Offset < r.Offset }) {
				t.Fatalf("%s is not the first of its partition", first.id)
			}
		case second.id:
			again := kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				if h.Key == "ce_id" {
					h.Value = []byte("another")
				}
				again.Headers = append(again.Headers, h)
			}
			if err := p.client.ProduceSync(t.Context(), &again).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := p.admin.CommitAllOffsets(t.Context(), p.group(), skip); err != nil {
		t.Fatal(err)
	}
	p.start("worker")
	e := p.settle(t, sent) // as many tasks as were sent are done: one is missing and one is too many
	v := judge(sent, e)
	for word, id := range map[string]string{"lost": first.id, "duplicate": "another"} {
		if !slices.ContainsFunc(v.findings, func(f string) bool { return strings.HasPrefix(f, word) && strings.Contains(f, id) }) {
			t.Errorf("no finding says %s of %s: %v", word, id, v.findings)
		}
	}
}

// plants are faults by name; each returns what it must be found as.
func plants(victim sentTask) map[string]func(*evidence) string {
	history := func(e *evidence) []message { return e.messages[victim.conversation] }
	return map[string]func(*evidence) string{
		"no result": func(e *evidence) string {
			e.results = slices.DeleteFunc(e.results, func(r resultEvent) bool { return r.result.TaskID == victim.id })
			return "lost"
		},
		"failed result": func(e *evidence) string {
			i := slices.IndexFunc(e.results, func(r resultEvent) bool { return r.result.TaskID == victim.id })
			e.results[i].result.Status = "failed"
			return "lost"
		},
		"unknown result": func(e *evidence) string {
			e.results = append(e.results, resultEvent{id: "x.result", key: victim.conversation})
			return "duplicate"
		},
		"second completion": func(e *evidence) string {
			e.completions = append(e.completions, completion{taskID: victim.id, conversation: victim.conversation, status: "completed", redrive: 1})
			return "duplicate"
		},
		"dead letter": func(e *evidence) string {
			e.deadLetters = append(e.deadLetters, "x")
			return "lost"
		},
		"no answer": func(e *evidence) string {
			e.messages[victim.conversation] = slices.Delete(history(e), 3, 4)
			return "lost"
		},
		"message twice": func(e *evidence) string {
			e.messages[victim.conversation] = append(history(e), history(e)[2], history(e)[3])
			return "duplicate"
		},
		"turns swapped": func(e *evidence) string {
			h := history(e)
			h[0], h[1], h[2], h[3] = h[2], h[3], h[0], h[1]
			return "reordered"
		},
		"answer before question": func(e *evidence) string {
			h := history(e)
			h[2], h[3] = h[3], h[2]
			return "reordered"
		},
		"other content": func(e *evidence) string {
			history(e)[2].content = "?"
			return "lost"
		},
		"turns at the same time": func(e *evidence) string {
			i := slices.IndexFunc(e.results, func(r resultEvent) bool { return r.result.TaskID == victim.id })
			e.results[i].result.StartedAt = e.results[i].result.StartedAt.AddDate(0, 0, -1)
			return "reordered"
		},
	}
}

// execute changes the pipeline's database behind its back.
func execute(t testing.TB, p *pipeline, sql string, args ...any) {
	t.Helper()
	if err := p.query(t.Context(), sql, func(pgx.Rows) error { return nil }, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
