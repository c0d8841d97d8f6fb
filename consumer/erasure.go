package consumer

import (
	"context"
	"time"

	"millrace"
)

// Erasures is what tells the engine of erased conversations.
type Erasures interface {
	// WatchErasures tells of erasures until ctx ends. At first it tells of recent ones
	// again. Each is a hint. It returns an error when it can tell no more.
	WatchErasures(ctx context.Context, told func([]millrace.Erased)) error
}

// hearErasures listens until ctx ends.
func (e *Engine) hearErasures(ctx context.Context) {
	for try := 1; ctx.Err() == nil; try++ {
		began := time.Now()
		err := e.cfg.Erasures.WatchErasures(ctx, e.erased)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			try = 1
		}
		delay := fullJitter(200*time.Millisecond, 10*time.Second, try)
		e.log.Warn().Err(err).Dur("retry_in", delay).Msg("cannot hear of erasures; conversations that are erased stay in memory until their next turn")
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
		}
	}
}

// erased drops what lanes hold of conversations that are erased. A lane that runs
// keeps its own: its turn commits nothing, and goes on with what is reloaded then.
func (e *Engine) erased(erasures []millrace.Erased) {
	e.mu.Lock()
	defer e.mu.Unlock()
	numbers := make(map[int32]bool)
	for tp := range e.parts {
		numbers[tp.partition] = true
	}
	for _, of := range erasures {
		for number := range numbers {
			l := e.lanes[laneKey{partition: number, conversation: of.Conversation}]
			if l == nil || l.running || l.conv == nil || l.conv.Version >= of.Version {
				continue
			}
			e.cache.take(l)
			l.conv = nil
			e.dropEmpty(l)
		}
	}
}
