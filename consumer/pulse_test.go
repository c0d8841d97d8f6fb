package consumer

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

func TestLiveNamesTheLoopThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffline(t, newMemoryStore(), appendTask, nil)
		if err := o.Live(t.Context()); err != nil {
			t.Errorf("not started yet: %v", err)
		}
		all := []*pulse{&o.pulses.poll, &o.pulses.commit, &o.pulses.handover, &o.pulses.leases}
		for _, hangs := range all {
			for _, p := range all {
				p.beat()
			}
			<-time.After(stuckAfter)
			if err := o.Live(t.Context()); err != nil {
				t.Errorf("after %s: %v", stuckAfter, err)
			}
			for _, p := range all {
				if p != hangs {
					p.beat()
				}
			}
			<-time.After(time.Second)
			err := o.Live(t.Context())
			if want := "the " + hangs.loop + " has not moved for 11s"; err == nil || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
			hangs.still()
			if err := o.Live(t.Context()); err != nil {
				t.Errorf("after it moved again: %v", err)
			}
		}
		for _, p := range all {
			p.end()
			p.still()
		}
		<-time.After(time.Hour)
		if err := o.Live(t.Context()); err != nil {
			t.Errorf("after all have ended: %v", err)
		}
	})
}

// All loops beat by themselves, the hand-over's without a Redis that answers too.
func TestRunningEngineBeats(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	b := newBroker(t)
	engine, stop := b.start(t, newMemoryStore(), appendTask, func(c *Config) { c.Redis = client })
	all := []*pulse{&engine.pulses.poll, &engine.pulses.commit, &engine.pulses.handover}
	for _, p := range all {
		eventually(t, p.loop+" runs", func() bool { return p.last.Load() > 0 })
		last := p.last.Load()
		eventually(t, p.loop+" beats again", func() bool { return p.last.Load() > last })
	}
	stop()
	for _, p := range all {
		if p.last.Load() != 0 {
			t.Errorf("the %s beats after the end", p.loop)
		}
	}
	if err := engine.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "draining") {
		t.Errorf("a stopped engine is ready: %v", err)
	}
}
