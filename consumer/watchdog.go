package consumer

import (
	"context"
	"fmt"
	"time"
)

// sweepEvery is how often the watchdog looks at the running turns.
const sweepEvery = time.Second

// The watchdog finds turns whose context has ended and whose handler goes on
// regardless. Nothing can stop such a handler but the end of its process. Its
// slot stays taken, because it is busy, and so does its lane: freed, it would run
// the conversation beside the turn that still runs.

// stuckTurn is a turn that the watchdog tells of.
type stuckTurn struct {
	task, taskType, conversation string
	since                        time.Time
	cause                        error
}

func (e *Engine) watchdogLoop(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			e.sweep(now)
		}
	}
}

// sweep looks at every running turn. What is stuck is logged once.
func (e *Engine) sweep(now time.Time) {
	var (
		found  []stuckTurn
		stuck  int
		oldest int64
	)
	e.mu.Lock()
	for _, l := range e.running {
		turn := l.turn.Load()
		if turn == nil {
			continue
		}
		since, cause := turn.over(now)
		if cause == nil || now.Sub(since) < e.cfg.StuckAfter {
			continue
		}
		stuck++
		if at := since.UnixNano(); oldest == 0 || at < oldest {
			oldest = at
		}
		if !turn.reported {
			turn.reported = true
			task := &l.current.task
			found = append(found, stuckTurn{task.ID, task.Type, task.Conversation, since, cause})
		}
	}
	e.mu.Unlock()
	e.metrics.stuckTurns.Set(float64(stuck))
	e.stuckSince.Store(oldest)
	for _, s := range found {
		e.log.Error().AnErr("ended_by", s.cause).Str("task", s.task).Str("type", s.taskType).Str("conversation", s.conversation).
			Dur("for", now.Sub(s.since)).Dur("not_live_after", e.cfg.StuckLimit).
			Msg("a handler ignores that its context has ended; its slot and its conversation are taken until it returns")
	}
}

// checkStuck reports whether a turn has been stuck for longer than StuckLimit.
func (e *Engine) checkStuck(now time.Time) error {
	since := e.stuckSince.Load()
	if since == 0 {
		return nil
	}
	if age := now.Sub(time.Unix(0, since)); age > e.cfg.StuckLimit {
		return fmt.Errorf("a handler has ignored the end of its context for %s; only a restart frees its slot", age.Round(time.Second))
	}
	return nil
}
