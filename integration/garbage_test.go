//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// A payload is any bytes: what is in them breaks nothing, and the history keeps
// them as they are.
func TestGarbagePayloadSurvives(t *testing.T) {
	p := newPipeline(t, services{})
	p.startIngest()
	p.start("worker")
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	payloads := []struct {
		name        string
		value       []byte
		contentType string
	}{
		{"every byte", every, "application/octet-stream"},
		{"NUL", []byte("a\x00b"), ""},
		{"only NUL", bytes.Repeat([]byte{0}, 1000), ""},
		{"empty", []byte{}, ""},
		{"JSON with an escaped NUL", []byte(`{"text":"a\u0000b"}`), millrace.JSON},
		{"JSON with an escaped NUL in a name", []byte(`{"a\u0000b":[1]}`), millrace.JSON},
		{"JSON with half a surrogate pair", []byte(`{"text":"\ud800"}`), millrace.JSON},
		{"JSON with a large number", []byte(`1e999999`), millrace.JSON},
		{"JSON with a name given twice", []byte(`{"a":1,"a":2}`), millrace.JSON},
		{"JSON in spaces", []byte(" \n{ \"a\" : 1 }\r\n"), millrace.JSON},
		{"JSON nested deep", []byte(strings.Repeat("[", 5000) + strings.Repeat("]", 5000)), millrace.JSON},
		{"invalid UTF-8 in JSON's clothes", []byte("{\"text\":\"\xff\xfe\"}"), ""},
		{"a right-to-left mark and an emoji", []byte("\u202e \U0001F6B0"), "text/plain; charset=utf-8"},
		{"what Go escapes in JSON", []byte("<script>&\u2028</script>"), "text/html"},
		{"1 MiB", bytes.Repeat([]byte("0123456789abcdef"), 1<<16), ""},
		{"as large as settings allow", bytes.Repeat([]byte("0123456789abcdef"), (2<<20-64<<10)/16), ""},
		{"1 MiB that base64 makes larger", bytes.Repeat([]byte{0xff}, 1<<20), ""},
		{"1 MiB that JSON makes six times as large", bytes.Repeat([]byte{0}, 1<<20), ""},
		{"nearly 2 MiB of no text", bytes.Repeat([]byte{0xfe}, 2<<20-1000), ""},
	}
	for i, payload := range payloads {
		t.Run(payload.name, func(t *testing.T) {
			conversation := "garbage " + payload.name
			record := &kgo.Record{Topic: p.topic("tasks.normal"), Partition: int32(i % partitions), Key: []byte(conversation), Value: payload.value}
			id := "garbage-" + strings.ReplaceAll(payload.name, " ", "-")
			record.Headers = []kgo.RecordHeader{{Key: "ce_id", Value: []byte(id)}}
			if payload.contentType != "" {
				record.Headers = append(record.Headers, kgo.RecordHeader{Key: "content-type", Value: []byte(payload.contentType)})
			}
			if err := p.client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if r := p.result(t, id); r.Status != millrace.StatusCompleted || r.Attempts != 1 {
				t.Errorf("ended as %s after %d attempts: %s", r.Status, r.Attempts, r.Error)
			}
			var page struct {
				Messages []millrace.Message `json:"messages"`
			}
			if err := get(*p.api.Load()+"/v1/conversations/"+strings.ReplaceAll(conversation, " ", "%20"), http.StatusOK, &page); err != nil {
				t.Error(err)
			}
			if n := len(page.Messages); n != 2 {
				t.Errorf("the API shows %d messages, want 2", n)
			}
			p.mustComplete(t, "after "+payload.name)
		})
	}
	eventually(t, settlePatience, "the pipeline has settled", func() error { return p.settled(t.Context()) })
	e, err := p.gather(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	results := make(map[string]json.RawMessage)
	for _, r := range e.results {
		results[r.result.ConversationID] = r.result.Result
	}
	for _, payload := range payloads {
		conversation := "garbage " + payload.name
		history := e.messages[conversation]
		if len(history) != 2 || history[0].content != string(payload.value) || history[1].content != string(payload.value) {
			t.Errorf("%s: the history holds other bytes", payload.name)
		}
		if _, published := results[conversation]; !published {
			t.Errorf("%s: no result was published", payload.name)
		}
	}
	for _, letter := range e.deadLetters {
		t.Errorf("dead letter: %.500s", letter)
	}
}
