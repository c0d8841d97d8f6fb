package outbox

import (
	"math"
	"slices"
	"testing"
)

func TestMarkerRoundTrip(t *testing.T) {
	for _, ids := range [][]int64{nil, {1}, {1, 2, 3}, {5, 1000, 1 << 40, math.MaxInt64}} {
		got, err := decodeMarker(encodeMarker(ids))
		if err != nil || !slices.Equal(got, ids) {
			t.Errorf("%v came back as %v, %v", ids, got, err)
		}
	}
	if got, _ := decodeMarker(encodeMarker([]int64{3, 1, 2})); !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("unsorted ids came back as %v", got)
	}
}

func TestMarkerOfFiveHundredRowsIsSmall(t *testing.T) {
	ids := make([]int64, 500)
	for i := range ids {
		ids[i] = int64(1e12) + int64(i)*8
	}
	if n := len(encodeMarker(ids)); n > 600 {
		t.Errorf("%d bytes for 500 ids", n)
	}
}

func FuzzDecodeMarker(f *testing.F) {
	f.Add(encodeMarker([]int64{1, 2, 500}))
	f.Add([]byte{markerFormat, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := decodeMarker(b)
		if err != nil {
			return
		}
		if !slices.IsSorted(ids) {
			t.Fatalf("ids %v do not ascend", ids)
		}
		again, err := decodeMarker(encodeMarker(ids))
		if err != nil || !slices.Equal(again, ids) {
			t.Fatalf("%v came back as %v, %v", ids, again, err)
		}
	})
}
