package millrace_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"millrace"
)

func fullTask() millrace.Task {
	return millrace.Task{
		ID: "0198c0de-0000-7000-8000-000000000001", Conversation: "conv/1", Type: "chat.message", Tenant: "acme",
		Source: "/shop", Time: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC),
		Deadline: time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC), MaxAttempts: 3, OnBusy: millrace.BusyReject, Redrive: 2,
		ContentType: "application/json", Payload: []byte(`{"text":"hi"}`),
		Attributes:  map[string]string{"service": "flights", "region": "eu"},
		TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceState: "a=b",
	}
}

func TestRecordRoundTrip(t *testing.T) {
	unkeyed := fullTask()
	unkeyed.Conversation = ""
	bare := millrace.Task{ID: "x", Type: "task", Payload: []byte{0xff, 0x00}}
	for _, want := range []millrace.Task{fullTask(), unkeyed, bare} {
		r, err := want.Record()
		if err != nil {
			t.Fatal(err)
		}
		got, err := millrace.TaskFromRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func TestRecordIsACloudEventInBinaryMode(t *testing.T) {
	task := fullTask()
	r, err := task.Record()
	if err != nil {
		t.Fatal(err)
	}
	headers := make(map[string]string)
	for _, h := range r.Headers {
		headers[h.Key] = string(h.Value)
	}
	for key, want := range map[string]string{
		"ce_specversion": "1.0", "ce_id": task.ID, "ce_source": "/shop", "ce_type": "chat.message",
		"ce_time": "2026-03-01T12:00:00.123456789Z", "ce_deadline": "2026-03-01T13:00:00Z", "ce_tenant": "acme",
		"ce_maxattempts": "3", "ce_onbusy": "reject", "ce_redrive": "2", "ce_service": "flights", "content-type": "application/json",
		"traceparent": task.TraceParent,
	} {
		if headers[key] != want {
			t.Errorf("header %s = %q, want %q", key, headers[key], want)
		}
	}
	if string(r.Key) != "conv/1" || string(r.Value) != `{"text":"hi"}` {
		t.Errorf("key %q, value %q", r.Key, r.Value)
	}
}

func TestEmptyPayloadIsNotANullValue(t *testing.T) {
	task := millrace.Task{ID: "x", Type: "tick"}
	r, err := task.Record()
	if err != nil || r.Value == nil {
		t.Fatalf("value %v, %v: a null value would be a dead letter", r.Value, err)
	}
	if _, err := millrace.TaskFromRecord(r); err != nil {
		t.Error(err)
	}
}

func TestBareRecordGetsAnIdFromItsPlace(t *testing.T) {
	r := millrace.Record{TopicID: [16]byte{1}, Partition: 3, Offset: 42, Key: []byte("c"), Value: []byte("hi")}
	first, err := millrace.TaskFromRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	again, _ := millrace.TaskFromRecord(r)
	if first.ID != again.ID || first.Type != millrace.DefaultType || first.Conversation != "c" {
		t.Errorf("tasks %+v and %+v", first, again)
	}
	seen := map[string]bool{first.ID: true}
	for _, other := range []millrace.Record{
		{TopicID: [16]byte{2}, Partition: 3, Offset: 42, Value: []byte("hi")},
		{TopicID: [16]byte{1}, Partition: 4, Offset: 42, Value: []byte("hi")},
		{TopicID: [16]byte{1}, Partition: 3, Offset: 43, Value: []byte("hi")},
	} {
		task, _ := millrace.TaskFromRecord(other)
		if seen[task.ID] {
			t.Errorf("id %s given twice", task.ID)
		}
		seen[task.ID] = true
	}
	if first.ID[14] != '5' || !strings.ContainsRune("89ab", rune(first.ID[19])) {
		t.Errorf("%s is no version 5 UUID", first.ID)
	}
}

func TestRecordsThatAreNoTasks(t *testing.T) {
	header := func(k, v string) millrace.Record {
		return millrace.Record{Value: []byte("x"), Headers: []millrace.Header{{Key: k, Value: []byte(v)}}}
	}
	many := millrace.Record{Value: []byte("x")}
	for i := range millrace.MaxAttributes + 1 {
		many.Headers = append(many.Headers, millrace.Header{Key: "ce_a" + strings.Repeat("a", i%10) + string(rune('a'+i%26)) + string(rune('a'+i/26)), Value: []byte("1")})
	}
	for name, tt := range map[string]struct {
		record millrace.Record
		reason string
	}{
		"null value":               {millrace.Record{Key: []byte("c")}, millrace.ReasonNullValue},
		"key that is not UTF-8":    {millrace.Record{Key: []byte{0xff}, Value: []byte("x")}, millrace.ReasonInvalidKey},
		"key with NUL":             {millrace.Record{Key: []byte("a\x00b"), Value: []byte("x")}, millrace.ReasonInvalidKey},
		"long key":                 {millrace.Record{Key: []byte(strings.Repeat("k", 257)), Value: []byte("x")}, millrace.ReasonInvalidKey},
		"other CloudEvents":        {header("ce_specversion", "0.3"), millrace.ReasonInvalidHeader},
		"empty id":                 {header("ce_id", ""), millrace.ReasonInvalidHeader},
		"long id":                  {header("ce_id", strings.Repeat("i", 257)), millrace.ReasonInvalidHeader},
		"id with newline":          {header("ce_id", "a\nb"), millrace.ReasonInvalidHeader},
		"empty type":               {header("ce_type", ""), millrace.ReasonInvalidHeader},
		"type not UTF-8":           {header("ce_type", "\xfe"), millrace.ReasonInvalidHeader},
		"deadline in words":        {header("ce_deadline", "tomorrow"), millrace.ReasonInvalidHeader},
		"time without zone":        {header("ce_time", "2026-01-01T00:00:00"), millrace.ReasonInvalidHeader},
		"no attempts":              {header("ce_maxattempts", "0"), millrace.ReasonInvalidHeader},
		"unknown busy policy":      {header("ce_onbusy", "coalesce?"), millrace.ReasonInvalidHeader},
		"empty busy policy":        {header("ce_onbusy", ""), millrace.ReasonInvalidHeader},
		"attempts in words":        {header("ce_maxattempts", "many"), millrace.ReasonInvalidHeader},
		"too many attempts":        {header("ce_maxattempts", "101"), millrace.ReasonInvalidHeader},
		"negative redrive":         {header("ce_redrive", "-1"), millrace.ReasonInvalidHeader},
		"redrive beyond int":       {header("ce_redrive", "99999999999999999999"), millrace.ReasonInvalidHeader},
		"content type of nonsense": {header("content-type", "json please"), millrace.ReasonInvalidHeader},
		"extension with a dash":    {header("ce_my-attr", "x"), millrace.ReasonInvalidHeader},
		"too many extensions":      {many, millrace.ReasonInvalidHeader},
		"broken JSON":              {millrace.Record{Value: []byte("{"), Headers: []millrace.Header{{Key: "content-type", Value: []byte("application/json; charset=utf-8")}}}, millrace.ReasonInvalidJSON},
		"empty JSON":               {millrace.Record{Value: []byte(" "), Headers: []millrace.Header{{Key: "content-type", Value: []byte("application/problem+json")}}}, millrace.ReasonInvalidJSON},
	} {
		t.Run(name, func(t *testing.T) {
			task, err := millrace.TaskFromRecord(tt.record)
			var invalid *millrace.RecordError
			if !errors.As(err, &invalid) || invalid.Reason != tt.reason || invalid.Detail == "" {
				t.Errorf("error %v, want reason %s", err, tt.reason)
			}
			if task.ID == "" {
				t.Error("no id for the dead letter")
			}
		})
	}
}

func TestForeignHeadersAreLeftOut(t *testing.T) {
	task, err := millrace.TaskFromRecord(millrace.Record{Value: []byte("x"), Headers: []millrace.Header{
		{Key: "b3", Value: []byte("\xff\x00")}, {Key: "ce_subject", Value: []byte("s")}, {Key: "ce_service", Value: []byte("flights")},
	}})
	if err != nil || len(task.Attributes) != 1 || task.Attributes["service"] != "flights" {
		t.Errorf("attributes %v, %v", task.Attributes, err)
	}
}

func TestTaskValidateNamesAllThatIsWrong(t *testing.T) {
	task := millrace.Task{
		Conversation: strings.Repeat("c", 300), Type: "a\tb", MaxAttempts: 1000, Redrive: -1,
		Attributes: map[string]string{"Bad": "x", "id": "y"},
	}
	err := task.Validate()
	for _, want := range []string{"id", "conversation", "type", "attempts", "redrive", `"Bad"`, `"id"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
	if _, err := task.Record(); err == nil {
		t.Error("an invalid task was encoded")
	}
}

func TestEventIdsAreStablePerRun(t *testing.T) {
	first, redriven := millrace.Key{ID: "t"}, millrace.Key{ID: "t", Redrive: 2}
	for got, want := range map[string]string{
		millrace.ResultEventID(first): "t.result", millrace.ResultEventID(redriven): "t.result.2",
		millrace.EventID(first, 0): "t.event0", millrace.EventID(redriven, 1): "t.event1.2",
	} {
		if got != want {
			t.Errorf("id %s, want %s", got, want)
		}
	}
}

func FuzzTaskFromRecord(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), "ce_id", []byte("id"), "content-type", []byte("application/json"))
	f.Add([]byte(nil), []byte("{}"), "ce_maxattempts", []byte("3"), "ce_time", []byte("2026-01-01T00:00:00Z"))
	f.Fuzz(func(t *testing.T, key, value []byte, h1 string, v1 []byte, h2 string, v2 []byte) {
		task, err := millrace.TaskFromRecord(millrace.Record{
			Key: key, Value: value, Headers: []millrace.Header{{Key: h1, Value: v1}, {Key: h2, Value: v2}},
		})
		if err != nil {
			var invalid *millrace.RecordError
			if !errors.As(err, &invalid) || task.ID == "" {
				t.Fatalf("error %v, id %q", err, task.ID)
			}
			return
		}
		// Whatever is accepted can be sent on and means the same.
		r, err := task.Record()
		if err != nil {
			t.Fatalf("accepted task cannot be encoded: %v", err)
		}
		again, err := millrace.TaskFromRecord(r)
		if err != nil {
			t.Fatalf("own record refused: %v", err)
		}
		if again.ID != task.ID || again.Conversation != task.Conversation || !again.Time.Equal(task.Time) ||
			!again.Deadline.Equal(task.Deadline) || string(again.Payload) != string(task.Payload) {
			t.Fatalf("%+v came back as %+v", task, again)
		}
	})
}
