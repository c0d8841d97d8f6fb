package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"millrace"
	"millrace/internal/app"
	"millrace/statestore"
)

func TestDLQCallsAreChecked(t *testing.T) {
	tests := map[string]string{
		"dlq":                               "want one of list, show, redrive, drop",
		"dlq list extra":                    `unknown command "extra"`,
		"dlq list --limit 0":                "--limit 0: want 1 to 1000",
		"dlq list --after -1":               "--after -1",
		"dlq list --since yesterday":        `--since "yesterday": want a time`,
		"dlq list --until -5m":              `--until "-5m": want a time`,
		"dlq show":                          "accepts 1 arg",
		"dlq show x":                        `dead letter "x": want the number`,
		"dlq show 1 --json --value":         "none of the others can be",
		"dlq redrive":                       "either ids, or filters, or --everything",
		"dlq redrive --all":                 "either ids, or filters, or --everything",
		"dlq redrive 1 --reason x":          "either ids, or filters, or --everything",
		"dlq redrive --everything --type x": "either ids, or filters, or --everything",
		"dlq redrive 0":                     `dead letter "0"`,
		"dlq redrive 1 --limit -1":          "--limit -1",
		"dlq drop":                          "either ids, or filters, or --everything",
		"dlq drop 1 x":                      `dead letter "x"`,
	}
	for args, want := range tests {
		t.Run(args, func(t *testing.T) {
			if got := call(t, nil, "", strings.Fields(args)...); got.code != 2 || !strings.Contains(got.err, want) {
				t.Errorf("code %d, error %q, want %q", got.code, got.err, want)
			}
		})
	}
}

func TestDropAsksAndOnlyYesIsYes(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, " YES \n": true, "yes": true, "n\n": false, "\n": false, "": false, "yeah\n": false} {
		var out bytes.Buffer
		if err := ask(t.Context(), strings.NewReader(answer), &out, "drop 2 dead letters"); (err == nil) != want || out.String() != "drop 2 dead letters? [y/N] " {
			t.Errorf("%q: %v after %q", answer, err, out.String())
		}
	}
}

func aLetter() statestore.DeadLetter {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return statestore.DeadLetter{
		DeadLetterEntry: millrace.DeadLetterEntry{
			ID: 17, TaskID: "t1", Redrive: 1, ConversationID: "c1", TaskType: "chat", Reason: millrace.ReasonPermanent,
			Detail: "handler answered 400: \x1b[31mno\nnot at all", Attempts: 1, Topic: "millrace.tasks.high", Partition: 3, Offset: 7, At: at,
		},
		Tenant: "acme", Priority: millrace.High, Stack: "goroutine 1\nmain.go:1\n",
		Record: millrace.Record{Key: []byte("c1"), Value: []byte(`{"text":"hi"}`), Headers: []millrace.Header{{Key: "ce_id", Value: []byte("t1")}, {Key: "raw", Value: []byte{0xff}}}},
	}
}

func TestShowTellsEverything(t *testing.T) {
	l := aLetter()
	text := string(describeLetter(&l))
	for _, want := range []string{
		"dead letter   17\n", "reason        permanent_error\n", "task          t1 (redrive 1)\n", "tenant        acme\n", "priority      high\n",
		"partition     3\noffset        7\nkey           c1\nheader        ce_id: t1\nheader        raw: base64: /w==\n",
		"stack\ngoroutine 1\nmain.go:1\n\nvalue, 13 bytes\n{\n  \"text\": \"hi\"\n}\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("a terminal would obey what the detail says")
	}
}

func TestShowAsJSONKeepsWhatIsJSONAndTextAndBytes(t *testing.T) {
	tests := map[string]struct {
		value []byte
		want  string
	}{
		"JSON":  {[]byte(`{"a": 1}`), `"value":{"a":1}}`},
		"text":  {[]byte("hello\x00"), `"value":"hello\u0000"}`},
		"bytes": {[]byte{0xff}, `"value":null,"value_base64":"/w=="}`},
		"null":  {nil, `"value":null}`},
		"empty": {[]byte{}, `"value":""}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := aLetter()
			l.Record.Value = test.value
			var out, line bytes.Buffer
			if err := (&cli{out: &out}).showJSON(&l); err != nil {
				t.Fatal(err)
			}
			if err := json.Compact(&line, out.Bytes()); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(strings.TrimSpace(line.String()), test.want+"}") || !strings.Contains(line.String(), `"stack":"goroutine 1`) ||
				!strings.Contains(line.String(), `"headers":[{"key":"ce_id","value":"t1"},{"key":"raw","value":null,"value_base64":"/w=="}]`) {
				t.Errorf("got %s", line.String())
			}
		})
	}
}

func TestValuesAreDisplayedAsWhatTheyAre(t *testing.T) {
	for value, want := range map[string]string{
		"":              "(empty)",
		"two\r\nlines":  "two\nlines",
		"a\x1b[2Jb":     "base64: YRtbMkpi",
		"{\"a\":\"ü\"}": "{\n  \"a\": \"ü\"\n}",
		"\"\xff\"":      "base64: Iv8i",
	} {
		if got := display([]byte(value)); got != want {
			t.Errorf("%q is shown as %q, want %q", value, got, want)
		}
	}
	if got := display(nil); got != "(null)" {
		t.Errorf("null is shown as %q", got)
	}
}

func TestListIsAPageAndSaysHowMuchMoreThereIs(t *testing.T) {
	var out bytes.Buffer
	c := &cli{out: &out}
	if err := c.printLetters([]statestore.DeadLetter{aLetter()}, 12, false, false); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if !strings.Contains(text, "17 │") || !strings.Contains(text, "t1 (redrive 1)") || !strings.Contains(text, "no not at all") || !strings.HasSuffix(text, "12 more; the next page: --after 17\n") {
		t.Errorf("got:\n%s", text)
	}
	out.Reset()
	if err := c.printLetters([]statestore.DeadLetter{aLetter()}, 12, false, true); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.HasPrefix(text, `{"dead_letters":[{"id":17,"task_id":"t1","redrive":1,`) || !strings.HasSuffix(text, `,"more":12,"next_after":17}`+"\n") {
		t.Errorf("got %s", text)
	}
	out.Reset()
	if err := c.printLetters(nil, 0, false, true); err != nil || out.String() != `{"dead_letters":[],"more":0}`+"\n" {
		t.Errorf("nothing is %q, %v", out.String(), err)
	}
}

func TestRedriveReportsEveryOutcome(t *testing.T) {
	letters := []app.Redriven{
		{Redriven: statestore.Redriven{DeadLetter: aLetter(), Resort: statestore.Sent}, Topic: "millrace.tasks.high", Partition: 3, Offset: 9},
		{Redriven: statestore.Redriven{DeadLetter: aLetter(), Resort: statestore.Requeued}},
		{Redriven: statestore.Redriven{DeadLetter: aLetter(), Resort: statestore.Ended}},
		{Redriven: statestore.Redriven{DeadLetter: aLetter(), Resort: statestore.Kept, Err: errDeclined}},
	}
	report := func(dryRun, asJSON bool) string {
		var out bytes.Buffer
		r := &redriveReport{c: &cli{out: &out, err: &bytes.Buffer{}}, total: 4, dryRun: dryRun, asJSON: asJSON, last: time.Now()}
		for _, l := range letters {
			if err := r.each(l); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.end(); err == nil || err.Error() != "1 dead letter cannot be redriven" {
			t.Errorf("the end: %v", err)
		}
		return out.String()
	}
	for _, test := range []struct {
		dryRun, asJSON bool
		want           string
	}{
		{false, false, `17  t1  redriven as 2 to millrace.tasks.high, partition 3, offset 9
17  t1  the event put back into the outbox
17  t1  was put back before, and redrive 2 has ended
17  t1  refused: nothing was done
1 of 4 dead letters redriven, 1 put back into the outbox, 1 had been before, 1 refused
`},
		{true, false, `17  t1  would be redriven as 2 to millrace.tasks.high
17  t1  the event would be put back into the outbox
17  t1  was put back before, and redrive 2 has ended
17  t1  refused: nothing was done
1 of 4 dead letters would be redriven, 1 put back into the outbox, 1 had been before, 1 refused
`},
		{false, true, `{"id":17,"task_id":"t1","outcome":"redriven","redrive":2,"topic":"millrace.tasks.high","partition":3,"offset":9}
{"id":17,"task_id":"t1","outcome":"requeued"}
{"id":17,"task_id":"t1","outcome":"ended","redrive":2}
{"id":17,"task_id":"t1","outcome":"refused","reason":"nothing was done"}
`},
	} {
		if got := report(test.dryRun, test.asJSON); got != test.want {
			t.Errorf("got:\n%swant:\n%s", got, test.want)
		}
	}
}
