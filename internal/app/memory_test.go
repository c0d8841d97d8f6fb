package app

import (
	"math"
	"runtime/debug"
	"testing"

	"github.com/rs/zerolog"
)

func TestMemoryIsLimitedAndGarbageIsNotCollectedEarly(t *testing.T) {
	restore := func() (percent int, limit int64) {
		percent = debug.SetGCPercent(100)
		return percent, debug.SetMemoryLimit(math.MaxInt64)
	}
	percent, limit := restore()
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	})
	for _, tt := range []struct {
		name    string
		env     map[string]string
		percent int
		limited bool
	}{
		{"nothing set", nil, collectAt, true},
		{"GOGC set", map[string]string{"GOGC": "50"}, 100, true},
		{"GOMEMLIMIT set", map[string]string{"GOMEMLIMIT": "1GiB"}, collectAt, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for k, v := range tt.env {
				t.Setenv(k, v) // the runtime itself has read them long before
			}
			TuneMemory(zerolog.Nop())
			percent, limit := restore()
			if percent != tt.percent {
				t.Errorf("garbage is collected at %d %%, want %d %%", percent, tt.percent)
			}
			if limited := limit != math.MaxInt64; limited != tt.limited {
				t.Errorf("a limit of %d bytes", limit)
			}
		})
	}
}
