package consumer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// stuckAfter is how long a loop may go without a beat. Every call that a loop
// makes between two beats is bounded well below it.
const stuckAfter = 10 * time.Second

// pulse is the last sign of life of a loop that must never stand still.
//
// Beats are differences of the monotonic clock: a machine that sets its clock is
// not taken for one that hangs.
type pulse struct {
	loop  string
	epoch time.Time
	last  atomic.Int64 // nanoseconds since epoch; 0: the loop does not run
}

func (p *pulse) beat() { p.last.Store(max(1, int64(time.Since(p.epoch)))) }

// still is a beat in the middle of a loop's work. It wakes no loop that has ended.
func (p *pulse) still() {
	if last := p.last.Load(); last != 0 {
		p.last.CompareAndSwap(last, max(1, int64(time.Since(p.epoch))))
	}
}

// end says that the loop has ended in order.
func (p *pulse) end() { p.last.Store(0) }

func (p *pulse) check() error {
	last := p.last.Load()
	if last == 0 {
		return nil
	}
	if age := time.Since(p.epoch) - time.Duration(last); age > stuckAfter {
		return fmt.Errorf("the %s has not moved for %s", p.loop, age.Round(time.Second))
	}
	return nil
}

// pulses are the loops without which a worker only seems to work: it would take
// no tasks in, commit no offsets, or let its announcements and leases lapse.
type pulses struct {
	poll, commit, handover, leases pulse
}

func (p *pulses) init() {
	p.poll.loop, p.commit.loop, p.handover.loop, p.leases.loop = "poll loop", "offset committer", "hand-over heartbeat", "lease heartbeat"
	now := time.Now()
	p.poll.epoch, p.commit.epoch, p.handover.epoch, p.leases.epoch = now, now, now, now
}

// Live reports whether the engine's own loops move, and names those that do not,
// and whether no handler has been stuck for long. It asks nobody else: a restart
// must be the cure of what it reports.
func (e *Engine) Live(context.Context) error {
	return errors.Join(e.pulses.poll.check(), e.pulses.commit.check(), e.pulses.handover.check(), e.pulses.leases.check(), e.checkStuck(time.Now()))
}
