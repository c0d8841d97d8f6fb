//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// badRecord is a record that cannot be done as a task.
type badRecord struct {
	name    string
	key     []byte
	value   []byte
	headers []kgo.RecordHeader
	reason  string
	says    string // part of the detail
}

func badRecords() []badRecord {
	good := []byte(`{"text":"hi"}`)
	long := func(n int) string { return strings.Repeat("x", n) }
	headers := func(pairs ...string) (all []kgo.RecordHeader) {
		for i := 0; i < len(pairs); i += 2 {
			all = append(all, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return all
	}
	bad := func(name, header, value string) badRecord {
		return badRecord{name: name, key: []byte("bad"), value: good, headers: headers(header, value), reason: millrace.ReasonInvalidHeader, says: header}
	}
	tooMany := badRecord{name: "33 attributes", key: []byte("bad"), value: good, reason: millrace.ReasonInvalidHeader, says: "33"}
	for i := range 33 {
		tooMany.headers = append(tooMany.headers, headers(fmt.Sprintf("ce_a%d", i), "x")...)
	}
	return []badRecord{
		{name: "null value", key: []byte("bad"), reason: millrace.ReasonNullValue},
		{name: "null value without a key", reason: millrace.ReasonNullValue},
		{name: "broken JSON where JSON is promised", key: []byte("bad"), value: []byte(`{"text":`), headers: headers("content-type", "application/json"), reason: millrace.ReasonInvalidJSON},
		{name: "nothing where JSON is promised", key: []byte("bad"), value: []byte{}, headers: headers("content-type", "application/json"), reason: millrace.ReasonInvalidJSON, says: "empty"},
		{name: "broken JSON of a kind", key: []byte("bad"), value: []byte("{"), headers: headers("content-type", "application/vnd.x+json; charset=utf-8"), reason: millrace.ReasonInvalidJSON},
		{name: "1 MiB of broken JSON", key: []byte("bad"), value: []byte(`"` + long(1<<20)), headers: headers("content-type", "application/json"), reason: millrace.ReasonInvalidJSON},
		{name: "bytes where JSON is promised", value: []byte("\x00\xff\xfe"), headers: headers("content-type", "application/json"), reason: millrace.ReasonInvalidJSON},
		bad("content type that is none", "content-type", ";;"),
		bad("wrong specversion", "ce_specversion", "0.3"),
		bad("empty id", "ce_id", ""),
		bad("id too long", "ce_id", long(257)),
		bad("id with a control character", "ce_id", "a\nb"),
		bad("id with a NUL", "ce_id", "a\x00b"),
		bad("id that is no UTF-8", "ce_id", "\xff"),
		bad("empty type", "ce_type", ""),
		bad("type too long", "ce_type", long(129)),
		bad("type with a NUL", "ce_type", "a\x00b"),
		bad("source too long", "ce_source", long(5000)),
		bad("tenant too long", "ce_tenant", long(129)),
		bad("tenant that is no UTF-8", "ce_tenant", "\xc3("),
		bad("time that is none", "ce_time", "yesterday"),
		bad("deadline that is none", "ce_deadline", "2026-13-01T00:00:00Z"),
		bad("attempts that are no number", "ce_maxattempts", "many"),
		bad("no attempts", "ce_maxattempts", "0"),
		bad("too many attempts", "ce_maxattempts", "101"),
		bad("negative redrive", "ce_redrive", "-1"),
		bad("redrive beyond all numbers", "ce_redrive", "99999999999999999999"),
		bad("attribute with a capital", "ce_Team", "x"),
		bad("attribute with a NUL", "ce_team", "a\x00b"),
		bad("attribute too long", "ce_team", long(5000)),
		bad("attribute without a name", "ce_", "x"),
		tooMany,
		{name: "key that is no UTF-8", key: []byte("\xff\xfe"), value: good, reason: millrace.ReasonInvalidKey},
		{name: "key too long", key: []byte(long(257)), value: good, reason: millrace.ReasonInvalidKey, says: "256"},
		{name: "key with a NUL", key: []byte("a\x00b"), value: good, reason: millrace.ReasonInvalidKey},
		{name: "deadline that has passed", key: []byte("bad"), value: good, headers: headers("ce_deadline", "2001-01-01T00:00:00Z"), reason: millrace.ReasonDeadlineExceeded},
	}
}

// deadLetterPage is what the API says of dead letters.
type deadLetterPage struct {
	DeadLetters []millrace.DeadLetterEntry `json:"dead_letters"`
	NextAfter   int64                      `json:"next_after"`
}

// gives sends a bad record and, behind it in the same partition, a good one: the
// first must become a dead letter, the second be done.
func (p *pipeline) gives(t *testing.T, in badRecord, partition int32) {
	t.Helper()
	bad := &kgo.Record{Topic: p.topic("tasks.high"), Partition: partition, Key: in.key, Value: in.value, Headers: in.headers}
	id := "behind-" + strings.ReplaceAll(in.name, " ", "-")
	good := &kgo.Record{
		Topic: bad.Topic, Partition: partition, Key: []byte("behind " + in.name), Value: []byte("good"),
		Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(id)}},
	}
	if err := p.client.ProduceSync(t.Context(), bad, good).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if r := p.result(t, id); r.Status != millrace.StatusCompleted {
		t.Errorf("the good record behind it ended as %s: %s", r.Status, r.Error)
	}
	var letter millrace.DeadLetterEntry
	eventually(t, settlePatience, "the API lists the dead letter", func() error {
		var page deadLetterPage
		for {
			url := fmt.Sprintf("%s/v1/dead-letters?after=%d&limit=20", *p.api.Load(), page.NextAfter)
			page = deadLetterPage{}
			if err := get(url, http.StatusOK, &page); err != nil {
				return err
			}
			for _, l := range page.DeadLetters {
				if l.Topic == bad.Topic && l.Partition == partition && l.Offset == bad.Offset {
					letter = l
					return nil
				}
			}
			if page.NextAfter == 0 {
				return fmt.Errorf("no dead letter of offset %d in partition %d", bad.Offset, partition)
			}
		}
	})
	if letter.Reason != in.reason || letter.Detail == "" || !strings.Contains(letter.Detail, in.says) {
		t.Errorf("dead letter with reason %s: %q, want %s that says %q", letter.Reason, letter.Detail, in.reason, in.says)
	}
	r := p.result(t, letter.TaskID)
	if r.Status != millrace.StatusFailed || !strings.HasPrefix(r.Error, in.reason) {
		t.Errorf("the task is %s with error %q", r.Status, r.Error)
	}
}

// oneDeadLetterEach reads the dead-letter topic: for every bad record a copy of
// its value with the reason, and in the results one failed event each.
func (p *pipeline) oneDeadLetterEach(t *testing.T, bad []badRecord) {
	t.Helper()
	eventually(t, settlePatience, "the pipeline has settled", func() error { return p.settled(t.Context()) })
	letters, err := p.read(t.Context(), p.topic("dlq"))
	if err != nil {
		t.Fatal(err)
	}
	type copied struct{ reason, value string }
	found := make(map[copied]int)
	for _, l := range letters {
		value := string(l.Value)
		if l.Value == nil {
			value = "(null)"
		}
		found[copied{header(l, "ce_reason"), value}]++
		if header(l, "ce_id") == "" || header(l, "ce_detail") == "" || header(l, "ce_origintopic") != p.topic("tasks.high") {
			t.Errorf("dead letter with headers %v", l.Headers)
		}
	}
	for _, b := range bad {
		value := string(b.value)
		if b.value == nil {
			value = "(null)"
		}
		if found[copied{b.reason, value}]--; found[copied{b.reason, value}] < 0 {
			t.Errorf("%s: no copy with reason %s and value %.100q in the dead-letter topic", b.name, b.reason, value)
		}
	}
	if len(letters) != len(bad) {
		t.Errorf("%d dead letters, want %d", len(letters), len(bad))
	}
	e, err := p.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for _, r := range e.results {
		if r.result.Status == millrace.StatusFailed {
			failed++
		}
	}
	if failed != len(bad) {
		t.Errorf("%d results say that a task failed, want %d", failed, len(bad))
	}
}

// collapses sends what is the same task twice, over HTTP and over Kafka.
func (p *pipeline) collapses(t *testing.T) {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: oneShot}
	var ids []string
	for range 3 {
		id, err := submit(t.Context(), client, *p.api.Load(), "the same", taskBody{Conversation: "twice", Type: "t", Payload: []byte(`1`)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if ids[0] != ids[1] || ids[0] != ids[2] {
		t.Errorf("one Idempotency-Key gave the ids %v", ids)
	}
	record := func() *kgo.Record {
		return &kgo.Record{
			Topic: p.topic("tasks.batch"), Partition: partitionOf("twice"), Key: []byte("twice"), Value: []byte("2"),
			Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte("the-same")}},
		}
	}
	if err := p.client.ProduceSync(t.Context(), record(), record(), record()).FirstErr(); err != nil {
		t.Fatal(err)
	}
	p.result(t, ids[0])
	p.result(t, "the-same")
	eventually(t, settlePatience, "the pipeline has settled", func() error { return p.settled(t.Context()) })
	e, err := p.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if history := e.messages["twice"]; len(history) != 4 {
		t.Errorf("two tasks, sent three times each, left the history %v", history)
	}
	results := 0
	for _, r := range e.results {
		if r.key == "twice" {
			results++
		}
	}
	if results != 2 {
		t.Errorf("%d results, want 2", results)
	}
}
