package consumer

import (
	"context"
	"slices"
	"strings"
	"time"
)

const (
	// handoverTimeout bounds each word with Redis inside a rebalance callback: the
	// group waits meanwhile.
	handoverTimeout = 500 * time.Millisecond
	beatInterval    = time.Second
	holdInterval    = 50 * time.Millisecond
	// blindFor is how long holds last while Redis does not answer.
	blindFor = 10 * time.Second
)

// A hold keeps a lane from running while an earlier owner of its partition
// still runs a turn of the same conversation. All other lanes of the partition
// start at once.
type hold struct {
	announced
	// lanes wait for it: that of the conversation, or those of an unkeyed task,
	// which has one for each time that it stands in the log.
	lanes []*lane
	since time.Time
}

type holdKey struct {
	partition int32
	turn      turnName
}

// name returns what a turn of the lane is announced as. An unkeyed lane has one
// task, which is it.
func (l *lane) name(it *item) turnName {
	if l.key.conversation != "" {
		return conversationName(l.key.conversation)
	}
	return taskName(it.task.ID)
}

// announceRunning tells the next owners of partitions which turns go on here.
// It reports whether they know: then the turns need not be canceled.
func (e *Engine) announceRunning(ctx context.Context, parts []*partition) bool {
	if e.handover == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	select {
	case e.announcing <- struct{}{}:
		defer e.announcing.unlock()
	case <-ctx.Done():
		e.metrics.handoverFailures.Inc()
		return false
	}
	e.mu.Lock()
	running := make(map[int32][]turnName)
	n := 0
	for _, l := range e.lanes {
		if l.running && slices.Contains(parts, l.current.part) {
			running[l.key.partition] = append(running[l.key.partition], l.name(l.current))
			n++
		}
	}
	e.mu.Unlock()
	if n == 0 {
		return true
	}
	if err := e.handover.announce(ctx, running); err != nil {
		e.metrics.handoverFailures.Inc()
		e.log.Warn().Err(err).Int("turns", n).Msg("cannot announce running turns; those that do not finish in time are canceled and run anew elsewhere")
		// Redis may have taken it all the same, and the next owner would wait for as
		// long as this worker lives.
		e.mu.Lock()
		for partition, names := range running {
			for _, name := range names {
				e.withdraw(holdKey{partition, name})
			}
		}
		e.mu.Unlock()
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range parts {
		p.handedOver = true
	}
	// A turn that finished since it was announced has nobody to withdraw it.
	still := make(map[holdKey]bool)
	for _, l := range e.lanes {
		if l.running && l.current.part.handedOver {
			still[holdKey{l.key.partition, l.name(l.current)}] = true
		}
	}
	for partition, names := range running {
		for _, name := range names {
			if key := (holdKey{partition, name}); !still[key] {
				e.withdraw(key)
			}
		}
	}
	e.metrics.handedOver.Add(float64(n))
	return true
}

// endHandedOver withdraws the announcement of a turn whose outcome is known. Its
// caller holds the mutex.
func (e *Engine) endHandedOver(l *lane, it *item) {
	if it.part.running == 0 {
		it.part.cancel()
	}
	e.withdraw(holdKey{l.key.partition, l.name(it)})
}

func (e *Engine) withdraw(key holdKey) {
	e.withdrawals = append(e.withdrawals, key)
	signal(e.ended)
}

// holdAnnounced holds the lanes whose conversations still run at earlier owners
// of the given partition numbers, or ran there for long when their worker died.
// It returns the numbers whose tasks may have a past.
func (e *Engine) holdAnnounced(ctx context.Context, numbers []int32) (withPast map[int32]bool) {
	if e.handover == nil || len(numbers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	turns, withPast, err := e.handover.read(ctx, numbers)
	if err != nil {
		e.metrics.handoverFailures.Inc()
		e.log.Warn().Err(err).Msg("cannot ask which turns earlier owners still run; a turn may run twice, and one of the two commits")
		withPast = make(map[int32]bool)
		for _, n := range numbers {
			withPast[n] = true // who knows
		}
		return withPast
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, t := range turns {
		key := holdKey{t.partition, t.turn}
		h := &hold{announced: t, since: now}
		// A topic that is made anew, or later than the others, is assigned alone: lanes of
		// its number wait already.
		if old := e.holds[key]; old != nil {
			h.lanes, h.since = old.lanes, old.since
		}
		e.holds[key] = h
	}
	e.metrics.holds.Set(float64(len(e.holds)))
	return withPast
}

// held reports whether a lane must wait for an earlier owner or for its lease,
// and has it woken when that is over. Its caller holds the mutex.
func (e *Engine) held(l *lane, it *item) bool {
	if e.awaitsLease(l) {
		return true
	}
	if len(e.holds) == 0 {
		return false
	}
	h := e.holds[holdKey{l.key.partition, l.name(it)}]
	if h == nil {
		return false
	}
	if !slices.Contains(h.lanes, l) {
		h.lanes = append(h.lanes, l)
	}
	return true
}

// dropHolds forgets the holds of partition numbers that are given up in all topics.
// What is announced stays for their next owner.
func (e *Engine) dropHolds(numbers map[int32][]*partition) {
	kept := make(map[int32]bool)
	for tp, p := range e.parts {
		kept[tp.partition] = kept[tp.partition] || !p.revoked
	}
	for key := range e.holds {
		if _, gone := numbers[key.partition]; gone && !kept[key.partition] {
			delete(e.holds, key)
		}
	}
	e.metrics.holds.Set(float64(len(e.holds)))
}

// handoverLoop keeps this worker's announcements standing, takes back those of
// turns that have ended, and releases holds.
func (e *Engine) handoverLoop(ctx context.Context) {
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	look := time.NewTicker(holdInterval)
	defer look.Stop()
	mark := time.NewTicker(markInterval)
	defer mark.Stop()
	answered := time.Now()
	defer e.pulses.handover.end()
	e.tell(ctx)
	for {
		e.pulses.handover.beat()
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			e.tell(ctx)
			e.clearSuspects(ctx)
		case <-e.ended:
			e.withdrawEnded(ctx)
		case <-mark.C:
			e.markLong(ctx)
		case <-look.C:
			e.withdrawEnded(ctx)
			if e.releaseHolds(ctx, time.Since(answered) > blindFor) {
				answered = time.Now()
			}
		}
	}
}

// tell beats: it keeps what this worker has announced standing.
func (e *Engine) tell(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, beatInterval)
	defer cancel()
	if err := e.beat(call); err != nil && ctx.Err() == nil {
		e.metrics.handoverFailures.Inc()
	}
}

// withdrawEnded takes announcements back whose turns have ended. What Redis does
// not take now is tried again: the next owner waits for it. What there is to say
// about their tasks is written in between, since that owner asks for it as soon as
// it waits no longer: a turn that ends after the withdrawals were taken has its
// own withdrawn next time.
func (e *Engine) withdrawEnded(ctx context.Context) {
	if e.handover == nil {
		return
	}
	e.mu.Lock()
	todo := e.withdrawals
	e.withdrawals = nil
	e.mu.Unlock()
	if !e.writeNotes(ctx) {
		e.putOff(todo)
		return
	}
	for i, key := range todo {
		e.pulses.handover.still()
		if err := e.withdrawOne(ctx, key); err != nil {
			e.metrics.handoverFailures.Inc()
			e.putOff(todo[i:])
			return
		}
	}
}

// withdrawOne takes an announcement back, unless it is that of another turn by
// now: a turn that was announced ends here after its partition has come back, the
// next one of its conversation starts, and is announced in its turn when the
// partition leaves again. Between that and this call nothing may be announced.
func (e *Engine) withdrawOne(ctx context.Context, key holdKey) error {
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	select {
	case e.announcing <- struct{}{}:
		defer e.announcing.unlock()
	case <-ctx.Done():
		return ctx.Err()
	}
	e.mu.Lock()
	again := false
	if conversation, keyed := strings.CutPrefix(string(key.turn), "c:"); keyed {
		l := e.lanes[laneKey{partition: key.partition, conversation: conversation}]
		again = l != nil && l.running && l.current.part.handedOver
	}
	e.mu.Unlock()
	if again {
		return nil // its own end withdraws it
	}
	return e.handover.withdraw(ctx, key.partition, key.turn)
}

func (e *Engine) putOff(withdrawals []holdKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.withdrawals = append(e.withdrawals, withdrawals...)
}

// releaseHolds lets lanes go whose earlier owner has finished or died. Blind
// says that Redis has not answered for so long that nobody is waited for any
// more. It reports whether Redis answered, or had nothing to be asked.
func (e *Engine) releaseHolds(ctx context.Context, blind bool) bool {
	e.mu.Lock()
	turns := make([]announced, 0, len(e.holds))
	for _, h := range e.holds {
		turns = append(turns, h.announced)
	}
	e.mu.Unlock()
	if len(turns) == 0 {
		return true
	}
	call, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	ended, orphaned, err := e.handover.ended(call, turns)
	if err != nil && blind {
		e.log.Warn().Err(err).Int("holds", len(turns)).Msg("Redis does not say whether earlier owners still run turns; waiting no longer")
		ended = turns
	}
	// The deaths count before the turns run again.
	buried := e.buryDead(call, orphaned)
	counted := len(buried) == len(orphaned)
	if blind {
		buried = orphaned
	}
	e.release(slices.Concat(ended, buried))
	return err == nil && counted
}

// release ends holds. The turn that was waited for may have completed the first
// task that waits, so that one is looked up before it runs.
func (e *Engine) release(turns []announced) {
	if len(turns) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.releases++
	now := time.Now()
	for _, t := range turns {
		key := holdKey{t.partition, t.turn}
		h := e.holds[key]
		if h == nil || h.announced != t {
			continue
		}
		delete(e.holds, key)
		e.metrics.holdSeconds.Observe(now.Sub(h.since).Seconds())
		for _, l := range h.lanes {
			for it := range l.heads() {
				it.recall = true // it may have failed, too
			}
			l.lookUpWaiting()
			e.makeReady(l, now)
		}
	}
	e.metrics.holds.Set(float64(len(e.holds)))
	e.dispatch()
}
