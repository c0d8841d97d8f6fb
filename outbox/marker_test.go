package outbox

import (
	"cmp"
	"math"
	"slices"
	"testing"
)

func TestMarkerRoundTrip(t *testing.T) {
	for _, rows := range [][]PublishedRow{nil, {{1, 7}}, {{1, 0}, {2, 1}, {3, math.MaxUint32}}, {{5, 1}, {1000, 2}, {1 << 40, 3}, {math.MaxInt64, 4}}} {
		got, err := decodeMarker(encodeMarker(rows))
		if err != nil || !slices.Equal(got, rows) {
			t.Errorf("%v came back as %v, %v", rows, got, err)
		}
	}
	if got, _ := decodeMarker(encodeMarker([]PublishedRow{{3, 30}, {1, 10}, {2, 20}})); !slices.Equal(got, []PublishedRow{{1, 10}, {2, 20}, {3, 30}}) {
		t.Errorf("unsorted rows came back as %v", got)
	}
}

func TestMarkerOfFiveHundredRowsIsSmall(t *testing.T) {
	rows := make([]PublishedRow, 500)
	for i := range rows {
		rows[i] = publishedRow(int64(1e12)+int64(i)*8, "event")
	}
	if n := len(encodeMarker(rows)); n > 2600 {
		t.Errorf("%d bytes for 500 rows", n)
	}
}

func FuzzDecodeMarker(f *testing.F) {
	f.Add(encodeMarker([]PublishedRow{{1, 1}, {2, 2}, {500, 3}}))
	f.Add([]byte{markerFormat, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		rows, err := decodeMarker(b)
		if err != nil {
			return
		}
		if !slices.IsSortedFunc(rows, func(a, b PublishedRow) int { return cmp.Compare(a.number, b.number) }) {
			t.Fatalf("ids of %v do not ascend", rows)
		}
		again, err := decodeMarker(encodeMarker(rows))
		if err != nil || len(again) != len(rows) {
			t.Fatalf("%v came back as %v, %v", rows, again, err)
		}
	})
}
