package consumer

import (
	"errors"
	"time"

	"millrace"
)

// A handler that calls runtime.Goexit, as a test's FailNow does, ends the
// goroutine of its slot. Nothing can stop that; what is left of the goroutine,
// its deferred calls, books the turn as failed and hands the slot on to another.

var errExited = errors.New("handler ended its goroutine (runtime.Goexit, or FailNow of package testing) instead of returning")

// noteExit leaves word for the end of the slot.
func noteExit(it *item, turn *millrace.Turn, stack string) {
	it.exitStack = stack
	it.journaled = it.journaled || turn.Journaled()
}

// afterExit ends the turn whose handler has taken the slot's goroutine with it.
func (e *Engine) afterExit(l *lane, it *item) {
	stack := it.exitStack
	it.exitStack = ""
	e.log.Error().Str("task", it.task.ID).Str("stack", stack).Msg(errExited.Error())
	v := verdict{kind: dropped}
	if ctx := it.part.ctx; ctx.Err() == nil {
		v = e.failed(ctx, l, it, errExited, stack)
	}
	now := time.Now()
	e.between.Add(1)
	if next, nextItem := e.finish(l, it, v, now); next != nil {
		e.slots.Go(func() { e.runTurns(next, nextItem, now) })
	}
}
