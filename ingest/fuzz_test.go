package ingest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"millrace"
)

// What the decoder takes is JSON by the standard library's judgement, has the
// payload that the standard library finds, and makes a record that reads back.
func FuzzTaskBody(f *testing.F) {
	for _, s := range []string{
		`{"conversation":"c","type":"t","payload":1}`,
		`{"conversation":null,"type":"t","payload":{"a":[1,"\"}]"]} , "priority":"high","tenant":"x","max_attempts":3,"attributes":{"a":"b"},"deadline":"2999-01-01T00:00:00Z","run_at":"2026-01-02T00:00:00.5+01:00"}`,
		`{"conversation":"\ud83d\ude00","type":"\u0074","payload":"\ud800"}`, `{`, `[]`, `{"a":}`, "\xef\xbb\xbf{}", `{"payload":1e999}`, ``,
	} {
		f.Add([]byte(s))
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	d := taskDecoder{priorities: millrace.DefaultPriorities(), maxPayload: 1 << 20, maxDepth: 64}
	f.Fuzz(func(t *testing.T, body []byte) {
		task, problem := d.decode(body, now)
		if problem != nil {
			if problem.Status < 400 || problem.Status > 499 || problem.Detail == "" || !utf8.ValidString(problem.Detail) {
				t.Fatalf("problem %+v for %q", problem, body)
			}
			if problem.kind == malformedJSON && json.Valid(body) && utf8.Valid(body) {
				t.Fatalf("valid JSON %q refused: %s", body, problem.Detail)
			}
			return
		}
		var want struct{ Payload json.RawMessage }
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatalf("%q taken: %v", body, err)
		}
		if !bytes.Equal(task.Payload, want.Payload) {
			t.Fatalf("payload %q, want %q", task.Payload, want.Payload)
		}
		task.ID, task.Time, task.Source = "id", now, "urn:x"
		r, err := task.Record()
		if err != nil {
			t.Fatalf("%q makes no record: %v", body, err)
		}
		back, err := millrace.TaskFromRecord(r)
		if err != nil {
			t.Fatalf("%q does not read back: %v", body, err)
		}
		if back.Conversation != task.Conversation || back.Type != task.Type || !back.Deadline.Equal(task.Deadline) || len(back.Attributes) != len(task.Attributes) {
			t.Fatalf("read back %+v, sent %+v", back, task)
		}
	})
}

func FuzzRules(f *testing.F) {
	for _, s := range []string{
		"rules:\n  - name: a\n    when: size > 1\n    priority: high\n", `{"rules":[{"name":"a","when":"true","priority":"batch"}]}`,
		"rules: [{name: a, when: |\n  type == 1\n, priority: high}]", "a: &a [*a]", "rules: *x", "", "- 1", "rules:\n  - name: a\n    when: |\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rules, err := ParseRules("rules.yaml", data, millrace.DefaultPriorities())
		if err != nil {
			if !strings.HasPrefix(err.Error(), "rules: ") {
				t.Fatalf("error %q", err)
			}
			return
		}
		p, err := rules.Classify(t.Context(), &Request{Type: "t", Size: 10, Attributes: map[string]string{"a": "b"}, Now: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		if p != "" && p.Validate() != nil {
			t.Fatalf("priority %q", p)
		}
	})
}

// Lines put together again are the body, save for those that are too long.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), 2)
	f.Add([]byte("\n"), 1)
	f.Add([]byte(strings.Repeat("x", 100)+"\ny"), 50)
	f.Fuzz(func(t *testing.T, body []byte, maxLine int) {
		if maxLine < 0 || maxLine > 1<<20 {
			return
		}
		l := &lineReader{in: bufio.NewReaderSize(bytes.NewReader(body), 16), maxLine: maxLine, maxTotal: 1 << 30}
		want := bytes.Split(body, []byte("\n"))
		if len(want[len(want)-1]) == 0 {
			want = want[:len(want)-1]
		}
		for i := 0; ; i++ {
			line, err := l.next()
			if errors.Is(err, io.EOF) {
				if i != len(want) {
					t.Fatalf("%d lines of %q, want %d", i, body, len(want))
				}
				return
			}
			if errors.Is(err, errLineTooLong) != (len(want[i]) > maxLine) || (err == nil && !bytes.Equal(line, want[i])) {
				t.Fatalf("line %d of %q: %q, %v", i, body, line, err)
			}
		}
	})
}
