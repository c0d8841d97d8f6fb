package statestore

import (
	"reflect"
	"strconv"
	"testing"

	"millrace"
)

func FuzzHotDocKeepsItsBytes(f *testing.F) {
	f.Add("conv", int64(1), int64(2), `{"a": 1}`)
	f.Add("", int64(0), int64(0), "")
	f.Add("ünï\x00", int64(1<<62), int64(1<<62), "null")
	f.Fuzz(func(t *testing.T, id string, version, length int64, state string) {
		want := millrace.Conversation{ID: id, Version: version & (1<<63 - 1), Length: length & (1<<62 - 1), Erased: length >> 3 & (1<<62 - 1)}
		if state != "" {
			want.State = []byte(state)
		}
		doc, at := string(encodeHotDoc(&want)), strconv.FormatInt(want.Version, 10)
		if got, err := decodeHotDoc(id, at, doc); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, %v; want %+v", got, err, want)
		}
		if got, err := decodeHotDoc(id+"'", at, doc); err == nil {
			t.Fatalf("another conversation has got %+v", got)
		}
		for cut := range len(doc) - len(state) {
			if got, err := decodeHotDoc(id, at, doc[:cut]); err == nil {
				t.Fatalf("the first %d bytes are a document: %+v", cut, got)
			}
		}
	})
}

func FuzzHotDocOfAnyBytes(f *testing.F) {
	f.Add("1", "")
	f.Add("1", `{"s":"{}","l":3}`)
	f.Add("-1", "\x01\x04conv\x02\x00{}")
	f.Add("1", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01conv")
	f.Fuzz(func(t *testing.T, version, doc string) {
		c, err := decodeHotDoc("conv", version, doc)
		if err == nil && (c.ID != "conv" || c.Version < 0 || c.Length < 0 || len(c.State) > len(doc)) {
			t.Fatalf("%q has become %+v", doc, c)
		}
	})
}
