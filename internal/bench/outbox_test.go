package bench

import (
	"strings"
	"testing"
)

func TestLedgerTakesEachEventOnceAndInTheOrderOfItsKey(t *testing.T) {
	for name, tc := range map[string]struct {
		events [][2]int // number, key
		want   string
	}{
		"all in order":       {[][2]int{{0, 0}, {1, 1}, {2, 0}}, ""},
		"keys overtake":      {[][2]int{{1, 1}, {0, 0}, {2, 0}}, ""},
		"twice":              {[][2]int{{0, 0}, {0, 0}}, "twice"},
		"a key out of order": {[][2]int{{2, 0}, {0, 0}}, "after"},
		"nobody's":           {[][2]int{{3, 0}}, "never written"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(3, 2)
			var err error
			for _, e := range tc.events {
				if err = l.add(e[0], e[1]); err != nil {
					break
				}
			}
			if tc.want == "" && (err != nil || !l.complete()) {
				t.Errorf("error %v, complete %v", err, l.complete())
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestWritersShareNoKey(t *testing.T) {
	owner := make(map[int]int)
	for i := range 100_000 {
		writer, key := i/outboxGroup%outboxWriters, keyOf(i, 10_000)
		if other, known := owner[key]; known && other != writer {
			t.Fatalf("key %d is written by %d and %d", key, other, writer)
		}
		owner[key] = writer
	}
	if len(owner) != 10_000 {
		t.Errorf("%d of 10000 keys are used", len(owner))
	}
}

func TestPinNeedsATime(t *testing.T) {
	if err := (&OutboxConfig{Only: []string{"pin"}}).Validate(); err == nil {
		t.Error("accepted without one")
	}
	if err := (&OutboxConfig{Only: []string{"nonsense"}}).Validate(); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("error %v, want one that names it", err)
	}
}
