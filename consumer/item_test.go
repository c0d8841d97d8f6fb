package consumer

import (
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// What becomes a dead letter is the record as it was read.
func TestItemsGiveTheirRecordsBack(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123)
	id := [16]byte{7}
	for name, r := range map[string]kgo.Record{
		"task":       {Key: []byte("c"), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte("t")}, {Key: "other", Value: nil}}},
		"null key":   {Value: []byte("v")},
		"empty key":  {Key: []byte{}, Value: []byte("v")},
		"no payload": {Key: []byte("c"), Value: []byte{}},
		"null value": {Key: []byte("c")},
		"bad key":    {Key: []byte{0xff}, Value: []byte("v")},
		"bad header": {Key: []byte("c"), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte{}}}},
	} {
		t.Run(name, func(t *testing.T) {
			r.Topic, r.Partition, r.Offset, r.Timestamp = "t", 3, 9, at
			it := newItem(&r, id)
			it.part = &partition{tp: topicPartition{"t", 3}, topicID: id}
			want := millrace.Record{Topic: "t", TopicID: id, Partition: 3, Offset: 9, Timestamp: at, Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				want.Headers = append(want.Headers, millrace.Header(h))
			}
			if got := it.record(); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}
