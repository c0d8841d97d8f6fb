package statestore

import (
	"reflect"
	"testing"
	"time"

	"millrace"
)

func FuzzHotMessageKeepsItsBytes(f *testing.F) {
	f.Add(int64(1), int64(1_700_000_000_123_456), "user", "task", "hello")
	f.Add(int64(-1), int64(-1), "", "", "\xff\x00")
	f.Add(int64(1<<62), int64(0), "röle", "a\x00b", "")
	f.Fuzz(func(t *testing.T, seq, at int64, role, task, content string) {
		at %= 1 << 56 // years that time.Time has microseconds for
		want := millrace.Message{Seq: seq, Role: role, TaskID: task, Content: content, At: time.UnixMicro(at).UTC()}
		encoded := string(encodeHotMessage(&want))
		got, err := decodeHotMessage(encoded)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
		for cut := range len(encoded) - len(content) {
			if got, err := decodeHotMessage(encoded[:cut]); err == nil {
				t.Fatalf("the first %d bytes are a message: %+v", cut, got)
			}
		}
	})
}

func FuzzHotMessageOfAnyBytes(f *testing.F) {
	f.Add("")
	f.Add(`{"n":9,"r":"user","c":"eA=="}`)
	f.Add("\x01\x02\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := decodeHotMessage(s)
		if err == nil && len(m.Content)+len(m.Role)+len(m.TaskID) > len(s) {
			t.Fatalf("%q has become %+v", s, m)
		}
	})
}
