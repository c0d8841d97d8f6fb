//go:build integration

package outbox_test

import (
	"testing"
	"time"

	"millrace/outbox"
)

// However long nothing has been written, a relay asks for each shard no more
// often than it was told.
func TestAnIdleRelayAsksAtItsInterval(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	w.startWith(t, cfg)
	pass(t, 2*time.Second) // long enough for whatever grows with every empty answer
	const measured = time.Second
	before := w.pool.Stat().AcquireCount()
	pass(t, measured)
	asked := w.pool.Stat().AcquireCount() - before
	if most := int64(outbox.Shards)*int64(measured/cfg.PollInterval) + 100; asked > most {
		t.Errorf("PostgreSQL was asked %d times in %s, want at most %d", asked, measured, most)
	}
}

func pass(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
