package consumer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace"
)

// A task that takes its worker down (a crash outside the handler's reach, memory
// without end, an exit) would take down every worker that it is handed to. All
// that can be told afterwards is which turns ran: so those that last are marked
// in Redis, and when their worker has died, the next owner of their partition
// counts its death against each. Two deaths make a suspect, which from then on
// runs alone in its worker; a death of that worker then is its own doing, and
// ends it. What only shared the process with a killer runs to its end in its
// turn, alone, and is forgotten as a suspect: no number of shared deaths makes a
// dead letter.
//
// What kills within its first second is not marked in time. So where the owner of
// a partition has died, its next owner marks the first turns of what lay in the
// log before they start: what killed the one is among them.
//
// Dead means that the key of the incarnation has lapsed. A worker that only stood
// still takes its death back as its turns end; one that is told to stop takes its
// marks back first.
const (
	// markAfter is how long a turn runs before it is marked, markInterval how often
	// there is a look for such turns.
	markAfter    = time.Second
	markInterval = 250 * time.Millisecond
	// maxMarks bounds the turns that one look marks.
	maxMarks = 1000
	// sharedDeaths is how many deaths count of turns that did not run alone: they
	// make a suspect. One more, alone, makes a killer.
	sharedDeaths = 2
	// maxPause bounds how long other turns run between two suspects.
	maxPause = time.Minute
)

// deaths are those of workers that ran a task: for each a word of a letter, s
// when other turns ran beside it or a when it ran alone, and the incarnation; a
// space ends every word.
type deaths string

func (d deaths) count() int { return strings.Count(string(d), " ") }

func (d deaths) alone() int {
	n := 0
	for word := range strings.FieldsSeq(string(d)) {
		if word[0] == 'a' {
			n++
		}
	}
	return n
}

// killer reports whether there is no more doubt.
func (d deaths) killer() bool { return d.count() > sharedDeaths && d.alone() > 0 }

// suspect reports whether the task must run alone.
func (d deaths) suspect() bool { return d.count() >= sharedDeaths && !d.killer() }

func (d deaths) incarnations() []string {
	var out []string
	for word := range strings.FieldsSeq(string(d)) {
		out = append(out, word[1:])
	}
	return out
}

// without returns the deaths that are not of the given incarnations.
func (d deaths) without(explained map[string]bool) deaths {
	var b strings.Builder
	for word := range strings.FieldsSeq(string(d)) {
		if !explained[word[1:]] {
			b.WriteString(word + " ")
		}
	}
	return deaths(b.String())
}

// mark is a turn that has run for long.
type mark struct {
	key   noteKey
	turn  turnName
	alone bool
}

func (m mark) value(incarnation string) string {
	mode := "s"
	if m.alone {
		mode = "a"
	}
	return incarnation + " " + mode + " " + string(m.turn)
}

func parseMark(value string) (incarnation string, turn turnName, ok bool) {
	incarnation, rest, ok := strings.Cut(value, " ")
	if !ok {
		return "", "", false
	}
	_, name, ok := strings.Cut(rest, " ")
	return incarnation, turnName(name), ok
}

// mark writes marks in one round trip. It beats first, like an announcement.
func (h *handover) mark(ctx context.Context, marks []mark) error {
	pipe := h.redis.Pipeline()
	pipe.Set(ctx, h.alive(h.incarnation), 1, aliveFor)
	if err := h.barrier(ctx, pipe); err != nil {
		return fmt.Errorf("mark running turns: %w", err)
	}
	values := make(map[int32][]any)
	for _, m := range marks {
		values[m.key.partition] = append(values[m.key.partition], m.key.task, m.value(h.incarnation))
	}
	for partition, fields := range values {
		pipe.HSet(ctx, h.marks(partition), fields...)
		pipe.PExpire(ctx, h.marks(partition), announcedFor)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("mark running turns: %w", err)
	}
	return nil
}

// laneRun is what the engine keeps of a lane's turn while it runs.
type laneRun struct {
	since time.Time
	// marked says that its mark is written or about to be, tried that it may be: Redis
	// may have taken one whose answer was lost.
	marked, tried bool
	// alone says that no other turn of this worker runs or starts.
	alone bool
	// early says that the turn is marked before its handler starts.
	early bool
}

// began books a turn as running. Its caller holds the mutex.
func (e *Engine) began(l *lane, now time.Time, alone bool) {
	l.run = laneRun{since: now, alone: alone}
	if p := l.current.part; p.markEarly > 0 && l.current.offset < p.lookUpBelow {
		p.markEarly--
		l.run.early = true
	}
}

// ownAnew says that this worker owns partition numbers, and returns those whose
// last owner has died.
func (e *Engine) ownAnew(ctx context.Context, numbers []int32) map[int32]bool {
	if e.handover == nil || len(numbers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	orphaned, err := e.handover.own(ctx, numbers)
	if err != nil {
		e.metrics.handoverFailures.Inc() // a killer that needs no second is found later
	}
	return orphaned
}

// disown says that this worker gives partition numbers up and lives.
func (e *Engine) disown(ctx context.Context, numbers []int32) {
	if e.handover == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	if err := e.handover.disown(ctx, numbers); err != nil {
		e.metrics.handoverFailures.Inc() // the next owner marks some turns for nothing
	}
}

// over books the end of a turn. Its caller holds the mutex.
func (e *Engine) over(l *lane, it *item, now time.Time) {
	if l.run.tried {
		e.note(it, func(n *note) { n.unmark = true })
	}
	if l.run.alone {
		e.suspects.end(e, now)
	}
}

// markLong marks the turns that have become long since the last look.
func (e *Engine) markLong(ctx context.Context) {
	e.mu.Lock()
	now := time.Now()
	var (
		marks []mark
		lanes []*lane
		items []*item
	)
	for _, l := range e.running {
		if len(marks) == maxMarks || e.draining {
			break
		}
		if !l.run.marked && now.Sub(l.run.since) >= markAfter {
			l.run.marked, l.run.tried = true, true // a turn that ends from now on takes its mark back
			marks = append(marks, l.mark())
			lanes, items = append(lanes, l), append(items, l.current)
		}
	}
	e.mu.Unlock()
	if len(marks) == 0 {
		return
	}
	if e.writeMarks(ctx, marks) == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, l := range lanes {
		if l.current == items[i] {
			l.run.marked = false // to be tried again
		}
	}
}

// mark returns the mark of the turn that runs.
func (l *lane) mark() mark {
	it := l.current
	return mark{key: noteKey{l.key.partition, taskField(it.task.Key())}, turn: l.name(it), alone: l.run.alone}
}

// markNow marks a turn before its handler runs. A mark that an earlier attempt
// still has to take back must not go after this one.
func (e *Engine) markNow(ctx context.Context, l *lane) {
	if e.handover == nil {
		return
	}
	e.mu.Lock()
	if e.draining || l.run.marked {
		e.mu.Unlock()
		return
	}
	l.run.marked, l.run.tried = true, true
	m := l.mark()
	if n, ok := e.notes[m.key]; ok {
		n.unmark = false
		e.notes[m.key] = n
	}
	e.mu.Unlock()
	if e.writeMarks(ctx, []mark{m}) != nil {
		e.mu.Lock()
		l.run.marked = false
		e.mu.Unlock()
	}
}

// writeMarks waits for those that write before it, but not for long: when Redis does
// not answer, slots would wait one behind the other, and the heartbeat behind them.
func (e *Engine) writeMarks(ctx context.Context, marks []mark) error {
	wait, stop := context.WithTimeout(ctx, 2*handoverTimeout)
	defer stop()
	select {
	case e.writing <- struct{}{}:
		defer e.writing.unlock()
	case <-wait.Done():
		e.metrics.handoverFailures.Inc()
		return fmt.Errorf("mark running turns: %w", wait.Err())
	}
	call, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	err := e.handover.mark(call, marks)
	if err != nil && ctx.Err() == nil {
		e.metrics.handoverFailures.Inc()
	}
	return err
}

// unmarkAll takes all marks back: how a worker ends that was told to stop, with
// what still runs then, is nobody's death. Its caller holds the mutex.
func (e *Engine) unmarkAll() {
	for _, l := range e.running {
		if l.run.tried {
			l.run.marked, l.run.tried = false, false
			e.note(l.current, func(n *note) { n.unmark = true })
		}
	}
}

// buryDead counts the deaths of workers whose turns were waited for. It returns
// those of orphaned whose deaths are counted: their lanes may go on.
func (e *Engine) buryDead(ctx context.Context, orphaned []announced) []announced {
	type grave struct {
		partition int32
		by        string
	}
	counted := make(map[grave]bool)
	for _, t := range orphaned {
		g := grave{t.partition, t.by}
		if _, asked := counted[g]; asked {
			continue
		}
		tasks, err := e.handover.bury(ctx, g.partition, g.by)
		counted[g] = err == nil
		if err != nil {
			e.metrics.handoverFailures.Inc()
			continue
		}
		e.noteDeaths(g.partition, g.by, tasks)
		e.learnDeaths(g.partition, tasks)
	}
	return slices.DeleteFunc(slices.Clone(orphaned), func(t announced) bool { return !counted[grave{t.partition, t.by}] })
}

// learnDeaths tells the tasks that wait in held lanes, so that they are queued as
// what they are when their hold ends.
func (e *Engine) learnDeaths(partition int32, tasks map[string]deaths) {
	if len(tasks) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, h := range e.holds {
		if key.partition != partition {
			continue
		}
		for _, l := range h.lanes {
			for it := range l.heads() {
				if d, ok := tasks[taskField(it.task.Key())]; ok {
					it.deaths, it.recorded = d, true
				}
			}
		}
	}
}

func (e *Engine) noteDeaths(partition int32, incarnation string, tasks map[string]deaths) {
	if len(tasks) == 0 {
		return
	}
	e.metrics.deaths.Add(float64(len(tasks)))
	e.log.Warn().Str("incarnation", incarnation).Int32("partition", partition).Int("turns", len(tasks)).
		Msg("a worker died; the turns that had run there for more than a second have its death counted, and run again")
	for field, d := range tasks {
		_, id, _ := strings.Cut(field, ":")
		switch {
		case d.killer():
			e.log.Error().Str("task", id).Int32("partition", partition).Int("deaths", d.count()).
				Msg("the worker died while this task ran alone in it; it becomes a dead letter")
		case d.suspect():
			e.log.Warn().Str("task", id).Int32("partition", partition).Int("deaths", d.count()).
				Msg("this task ran each time when workers died; from now on it runs alone in its worker, until it ends or the worker dies again")
		}
	}
}

// examine looks at a task with a past before its turn runs. It reports whether
// that is all that happens in this slot.
func (e *Engine) examine(ctx context.Context, l *lane, it *item) (verdict, bool) {
	if it.recall || l.run.alone {
		// A suspect may have been cleared while it waited.
		e.recallOne(ctx, it)
	}
	switch {
	case it.deaths.killer():
		return e.giveUpKiller(ctx, l, it), true
	case it.deaths.suspect() != l.run.alone:
		return verdict{kind: retry}, true // in a slot of the other kind
	case it.deaths == "":
		return verdict{}, false
	}
	if l.run.alone {
		e.metrics.aloneTurns.Inc()
		e.log.Warn().Str("task", it.task.ID).Str("conversation", it.task.Conversation).
			Msg("runs alone because workers died that ran it; no other turn of this worker starts until it ends")
	}
	e.markNow(ctx, l)
	return verdict{}, false
}

// giveUpKiller makes a dead letter of a task that has killed its workers, and
// clears those of suspicion that only were there.
func (e *Engine) giveUpKiller(ctx context.Context, l *lane, it *item) verdict {
	it.attempts = min(max(it.attempts, it.deaths.count()), millrace.MaxAttempts)
	v := e.giveUp(ctx, l, it, millrace.ReasonKilledWorkers, fmt.Sprintf(
		"%d workers died while the task ran in them, the last when nothing else did: incarnations %s. "+
			"Look for a crash outside the handler's reach, an exit or memory without end in their logs and the kernel's, and redrive the task once that is mended",
		it.deaths.count(), strings.Join(it.deaths.incarnations(), ", ")), "")
	if v.committed {
		ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
		defer cancel()
		if err := e.handover.explain(ctx, it.deaths.incarnations()); err != nil {
			// The innocent then run alone, one after another.
			e.metrics.handoverFailures.Inc()
		}
	}
	return v
}

func (h *handover) explained() string { return h.prefix + "explained" }

// explain says that a killer was given up for the deaths of incarnations.
func (h *handover) explain(ctx context.Context, incarnations []string) error {
	pipe := h.redis.Pipeline()
	members := make([]any, len(incarnations))
	for i, name := range incarnations {
		members[i] = name
	}
	pipe.SAdd(ctx, h.explained(), members...)
	pipe.PExpire(ctx, h.explained(), pastFor)
	_, err := pipe.Exec(ctx)
	return err
}

// leaveOutExplained takes deaths out of pasts that a killer was given up for: it
// was there, and did it again when it was alone.
func (h *handover) leaveOutExplained(ctx context.Context, found map[noteKey]past, incarnations map[string]bool) error {
	explained, err := h.areExplained(ctx, incarnations)
	if err != nil {
		return err
	}
	for key, p := range found {
		if rest := p.deaths.without(explained); rest != p.deaths {
			p.deaths, p.cleared = rest, true
			found[key] = p
		}
	}
	return nil
}

// areExplained returns those of incarnations that a killer was given up for.
func (h *handover) areExplained(ctx context.Context, incarnations map[string]bool) (map[string]bool, error) {
	if len(incarnations) == 0 {
		return nil, nil //nolint:nilnil // none of none
	}
	names := make([]any, 0, len(incarnations))
	for name := range incarnations {
		names = append(names, name)
	}
	are, err := h.redis.SMIsMember(ctx, h.explained(), names...).Result()
	if err != nil {
		return nil, fmt.Errorf("ask which deaths are explained: %w", err)
	}
	explained := make(map[string]bool)
	for i, is := range are {
		if is {
			explained[names[i].(string)] = true
		}
	}
	return explained, nil
}

// clearSuspects lets those that wait to run alone run with the others when the
// killer was found, here or at another worker.
func (e *Engine) clearSuspects(ctx context.Context) {
	incarnations := make(map[string]bool)
	e.mu.Lock()
	for _, l := range e.suspects.waiting {
		if it := l.head(); it != nil {
			for _, name := range it.deaths.incarnations() {
				incarnations[name] = true
			}
		}
	}
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	explained, err := e.handover.areExplained(ctx, incarnations)
	if err != nil {
		e.metrics.handoverFailures.Inc()
		return
	}
	if len(explained) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, l := range slices.Clone(e.suspects.waiting) {
		it := l.head()
		if it == nil || l.running {
			continue
		}
		if rest := it.deaths.without(explained); rest != it.deaths {
			it.deaths = rest
			e.note(it, func(n *note) { n.deaths = &rest })
			e.makeReady(l, now)
		}
	}
	e.dispatch()
}

// suspects are the lanes whose next task must run alone.
type suspects struct {
	waiting []*lane
	alone   *lane // the one that does
	// killers are lanes whose next task is to be given up. Nobody waits for that:
	// it may clear the others.
	killers []*lane
	// asked is when the first of waiting came to its turn, resume when others have
	// had theirs and the next one may come to its own.
	asked, resume time.Time
	timer         *time.Timer
}

// awaitVerdict queues a lane whose next task is a killer, to be given up, or a
// suspect, to run alone. Its caller holds the mutex.
func (e *Engine) awaitVerdict(l *lane, it *item) {
	switch {
	case it.deaths.killer():
		if slices.Contains(e.suspects.killers, l) {
			return
		}
		e.suspects.killers = append(e.suspects.killers, l)
	case !l.suspected:
		l.suspected = true
		e.suspects.waiting = append(e.suspects.waiting, l)
		e.metrics.suspects.Set(float64(len(e.suspects.waiting)))
	}
}

// nextAlone decides about suspects before any other lane is looked at: one that
// runs alone keeps all others from starting; one that waits does so as well until
// those that run have ended. It reports whether others may be looked at instead.
// Its caller holds the mutex.
func (e *Engine) nextAlone(now time.Time) (l *lane, alone, others bool) {
	s := &e.suspects
	if l := e.nextKiller(now); l != nil && e.schedule.free > 0 {
		s.killers = s.killers[1:]
		e.schedule.takeFor(l.head().priority)
		return l, false, false
	}
	if s.alone != nil {
		return nil, false, false
	}
	l = e.nextSuspect(now)
	if l == nil {
		return nil, false, true
	}
	if len(e.running) > 0 {
		return nil, false, false
	}
	e.dropSuspect()
	s.alone = l
	e.schedule.takeFor(l.head().priority)
	return l, true, false
}

// mayStart reports whether some lane may have a slot. Its caller holds the mutex.
func (e *Engine) mayStart() bool {
	s := &e.suspects
	if len(s.killers) == 0 && s.alone == nil && len(s.waiting) == 0 {
		return e.schedule.any()
	}
	now := time.Now()
	switch {
	case e.nextKiller(now) != nil && e.schedule.free > 0:
		return true
	case s.alone != nil:
		return false
	case e.nextSuspect(now) != nil:
		return len(e.running) == 0
	}
	return e.schedule.any()
}

// nextKiller returns the first lane whose next task is to be given up.
func (e *Engine) nextKiller(now time.Time) *lane {
	s := &e.suspects
	for len(s.killers) > 0 {
		l := s.killers[0]
		if it := l.head(); e.lanes[l.key] == l && !l.running && it != nil && it.deaths.killer() && !it.notBefore.After(now) {
			return l
		}
		s.killers[0] = nil
		s.killers = s.killers[1:]
	}
	return nil
}

// nextSuspect returns the first lane that is to run alone now.
func (e *Engine) nextSuspect(now time.Time) *lane {
	s := &e.suspects
	if now.Before(s.resume) && (len(e.running) > 0 || e.schedule.any()) {
		return nil // others have their time
	}
	for len(s.waiting) > 0 {
		if l := s.waiting[0]; e.readyAlone(l, now) {
			if s.asked.IsZero() {
				s.asked = now
			}
			return l
		}
		e.dropSuspect()
	}
	s.asked = time.Time{}
	return nil
}

// dropSuspect takes the first of those that wait out.
func (e *Engine) dropSuspect() {
	s := &e.suspects
	s.waiting[0].suspected = false
	s.waiting[0] = nil
	s.waiting = s.waiting[1:]
	e.metrics.suspects.Set(float64(len(s.waiting)))
}

// readyAlone tells a lane that waits to run alone from what has become of one: its
// partition may have gone, or a task of a higher priority may have come.
func (e *Engine) readyAlone(l *lane, now time.Time) bool {
	it := l.head()
	return e.lanes[l.key] == l && !l.running && it != nil && it.deaths.suspect() && !it.notBefore.After(now) && !e.held(l, it)
}

// end lets others run again, and for as long as they have had to wait before the
// next suspect takes the worker for itself.
func (s *suspects) end(e *Engine, now time.Time) {
	s.alone = nil
	if len(s.waiting) == 0 {
		s.asked = time.Time{}
		return
	}
	pause := min(now.Sub(s.asked), maxPause)
	s.asked, s.resume = time.Time{}, now.Add(pause)
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer = time.AfterFunc(pause, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.dispatch()
	})
}
