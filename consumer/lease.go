package consumer

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed lua/lease_take.lua
	leaseTakeLua string
	//go:embed lua/lease_renew.lua
	leaseRenewLua string
	//go:embed lua/lease_release.lua
	leaseReleaseLua string

	leaseTake    = redis.NewScript(leaseTakeLua)
	leaseRenew   = redis.NewScript(leaseRenewLua)
	leaseRelease = redis.NewScript(leaseReleaseLua)
)

const (
	// leaseFor is how long a lease outlives the last word of its worker.
	leaseFor = 5 * time.Second
	// placeFor is how long the next turn's place is kept for a worker that has not
	// asked again: a few looks. A worker that is free to run but has no slot asks no
	// more, and holds the others up no longer than this.
	placeFor = 250 * time.Millisecond
	// leaseKept is how long it is remembered who ran last. Not longer than blindFor:
	// after an outage of Redis long enough for turns without leases, nobody may
	// believe that a conversation is as he has left it.
	leaseKept = blindFor
	// maxLooks bounds the lanes that are asked for in one round trip.
	maxLooks = 1000
)

// Pools that serve different priorities are groups of their own, so that the
// lanes of one conversation are in several workers. A lease keeps their turns
// from running at once: it is taken in Redis before a turn and given back once
// the outcome of its commit is known. A lane that does not get it gives its slot
// back and waits; it has the next turn then, before the pool that had the last
// one. A turn that has journaled a step keeps the lease over its retries, as it
// keeps its place in its lane.
//
// The lease is a hint. When it is lost, or Redis is, turns may run at once; the
// conversation's version lets one of them commit, and the other runs again.
type leases struct {
	redis  redis.UniversalClient
	prefix string
	owner  string // pool/incarnation
	turns  atomic.Uint64

	// split says that other pools serve the same conversations. Without it none of
	// this costs anything.
	split atomic.Bool
	// failing is when Redis began not to answer, in unix nanoseconds; 0: it answers.
	failing atomic.Int64

	// The engine's mutex guards what follows.
	held   map[*lane]struct{} // with a lease
	parked map[*lane]struct{} // that wait for one
	ended  []lease
	wake   chan struct{} // asks for ended leases to be given back
}

// lease is what a turn has taken.
type lease struct {
	conversation string
	turn         string // pool/incarnation/number
}

func newLeases(h *handover, prefix, pool string) *leases {
	return &leases{
		redis: h.redis, prefix: prefix, owner: pool + "/" + h.incarnation,
		held: make(map[*lane]struct{}), parked: make(map[*lane]struct{}), wake: make(chan struct{}, 1),
	}
}

func (s *leases) key(conversation string) string { return s.prefix + "lease:" + conversation }

// poolOf returns the pool of whoever has a lease or is next.
func poolOf(owner string) string {
	pool, _, _ := strings.Cut(owner, "/")
	return pool
}

// blind reports whether Redis has not answered for so long that nobody is waited
// for any more.
func (s *leases) blind() bool {
	since := s.failing.Load()
	return since != 0 && time.Since(time.Unix(0, since)) > blindFor
}

// note takes down whether Redis answers.
func (s *leases) note(err error) {
	if err == nil {
		s.failing.Store(0)
		return
	}
	s.failing.CompareAndSwap(0, time.Now().UnixNano())
}

// claim is the answer to a question for a lease.
type claim struct {
	ok bool
	// by is who has the lease or is next, if it is not ok, and who had it last, if
	// it is.
	by string
}

func toClaim(cmd *redis.Cmd) (claim, error) {
	answer, err := cmd.Slice()
	if err != nil {
		return claim{}, err
	}
	if len(answer) != 2 {
		return claim{}, fmt.Errorf("lease script: %d values, want 2", len(answer))
	}
	ok, _ := answer[0].(int64)
	by, _ := answer[1].(string)
	return claim{ok: ok == 1, by: by}, nil
}

func (s *leases) askArgs(turn string) []any {
	return []any{s.owner, turn, leaseFor.Milliseconds(), placeFor.Milliseconds(), leaseKept.Milliseconds()}
}

// take asks for the lease of a conversation for a turn.
func (s *leases) take(ctx context.Context, l lease) (claim, error) {
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	c, err := toClaim(leaseTake.Run(ctx, s.redis, []string{s.key(l.conversation)}, s.askArgs(l.turn)...))
	if err != nil && ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return c, err // told to stop: that says nothing of Redis
	}
	s.note(err)
	return c, err
}

// each runs a script once for every lease in one round trip.
func (s *leases) each(ctx context.Context, script *redis.Script, all []lease, args func(lease) []any) ([]*redis.Cmd, error) {
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	do := func(run func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd) ([]*redis.Cmd, error) {
		pipe := s.redis.Pipeline()
		answers := make([]*redis.Cmd, len(all))
		for i, l := range all {
			answers[i] = run(ctx, pipe, []string{s.key(l.conversation)}, args(l)...)
		}
		_, err := pipe.Exec(ctx)
		return answers, err
	}
	answers, err := do(script.EvalSha)
	// Of a cluster's servers one may know the script and another may not, or not
	// answer at all: the first error does not tell.
	unknown := func(a *redis.Cmd) bool { return redis.HasErrorPrefix(a.Err(), "NOSCRIPT") }
	if err != nil && slices.ContainsFunc(answers, unknown) {
		answers, err = do(script.Eval)
	}
	s.note(err)
	return answers, err
}

// shared reports whether a turn of the lane needs a lease.
func (e *Engine) shared(l *lane) bool {
	return e.leases != nil && l.key.conversation != "" && e.leases.split.Load()
}

// takeLease takes the lease for the next turn of a lane, in its slot. If it
// returns false, the lane is parked: it gives the slot back and is woken when the
// lease can be had.
func (e *Engine) takeLease(ctx context.Context, l *lane, it *item) bool {
	s := e.leases
	if l.lease != "" {
		return true // kept from the attempt before, and renewed since
	}
	turn := s.owner + "/" + strconv.FormatUint(s.turns.Add(1), 10)
	if s.blind() {
		// The others cannot be seen. What they may have done is not in the lane.
		l.conv = nil
		e.metrics.leaseless.Inc()
		return true
	}
	var c claim
	err := errors.New("redis does not answer")
	if s.failing.Load() == 0 { // else the loop asks, and no slot waits for it
		c, err = s.take(ctx, lease{l.key.conversation, turn})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil && c.ok {
		l.lease, l.blockedBy = turn, ""
		s.held[l] = struct{}{}
		e.metrics.leases.Set(float64(len(s.held)))
		if c.by != s.owner {
			l.conv = nil // somebody else has run since, or it is not known
		}
		return true
	}
	if err != nil {
		e.metrics.leaseFailures.Inc()
	}
	if poolOf(c.by) == e.cfg.Pool {
		// An earlier owner of the partition, which the group may take for dead, still
		// runs this very task perhaps.
		it.lookUp = true
		l.lookUpWaiting()
	}
	l.blockedBy = c.by
	s.parked[l] = struct{}{}
	e.metrics.parked.Set(float64(len(s.parked)))
	return false
}

// lookUpWaiting has all that waits in a lane looked up before it runs.
func (l *lane) lookUpWaiting() {
	if l.pinned != nil {
		l.pinned.lookUp = true
	}
	for i := range l.waiting {
		for it := range l.waiting[i].all() {
			it.lookUp = true
		}
	}
}

// awaitsLease reports whether a lane waits for its lease. Its caller holds the
// mutex.
func (e *Engine) awaitsLease(l *lane) bool {
	if e.leases == nil || len(e.leases.parked) == 0 {
		return false
	}
	_, waits := e.leases.parked[l]
	return waits
}

// endLease has the lease of a lane given back: the outcome of its turn is known.
// Its caller holds the mutex.
func (e *Engine) endLease(l *lane) {
	s := e.leases
	s.ended = append(s.ended, lease{l.key.conversation, l.lease})
	l.lease = ""
	delete(s.held, l)
	e.metrics.leases.Set(float64(len(s.held)))
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// leaseLoop renews the leases of turns that run, gives back those of turns that
// have ended, and wakes lanes that can have theirs.
func (e *Engine) leaseLoop(ctx context.Context) {
	renew := time.NewTicker(beatInterval)
	defer renew.Stop()
	look := time.NewTicker(holdInterval)
	defer look.Stop()
	defer e.pulses.leases.end()
	for {
		e.pulses.leases.beat()
		select {
		case <-ctx.Done():
			return
		case <-e.leases.wake:
			e.releaseLeases(ctx)
		case <-renew.C:
			e.renewLeases(ctx)
		case <-look.C:
			e.wakeParked(ctx)
		}
	}
}

// releaseLeases gives leases back whose turns have ended. One that Redis does not
// take back lapses.
func (e *Engine) releaseLeases(ctx context.Context) {
	e.mu.Lock()
	ended := e.leases.ended
	e.leases.ended = nil
	e.mu.Unlock()
	if len(ended) == 0 {
		return
	}
	_, err := e.leases.each(ctx, leaseRelease, ended, func(l lease) []any { return []any{l.turn, leaseKept.Milliseconds()} })
	if err != nil {
		e.metrics.leaseFailures.Inc()
	}
}

// releaseAllLeases is for the end of a worker.
func (e *Engine) releaseAllLeases(ctx context.Context) {
	e.mu.Lock()
	for l := range e.leases.held {
		e.endLease(l)
	}
	e.mu.Unlock()
	e.releaseLeases(ctx)
}

func (e *Engine) renewLeases(ctx context.Context) {
	e.mu.Lock()
	held := make([]lease, 0, len(e.leases.held))
	for l := range e.leases.held {
		held = append(held, lease{l.key.conversation, l.lease})
	}
	e.mu.Unlock()
	if len(held) == 0 {
		return
	}
	answers, err := e.leases.each(ctx, leaseRenew, held, func(l lease) []any {
		return []any{l.turn, leaseFor.Milliseconds(), leaseKept.Milliseconds()}
	})
	if err != nil {
		e.metrics.leaseFailures.Inc()
		return
	}
	for _, answer := range answers {
		if renewed, err := answer.Int(); err == nil && renewed == 0 {
			e.metrics.leasesLost.Inc()
		}
	}
}

// wakeParked asks for the lanes that wait whether they can have their lease, and
// keeps their places.
func (e *Engine) wakeParked(ctx context.Context) {
	s := e.leases
	var (
		lanes []*lane
		asked []lease
	)
	e.mu.Lock()
	for l := range s.parked {
		if e.lanes[l.key] != l || l.head() == nil && !l.running {
			delete(s.parked, l) // its partition has been given up
			continue
		}
		if lanes = append(lanes, l); len(lanes) == maxLooks {
			break
		}
	}
	e.metrics.parked.Set(float64(len(s.parked)))
	e.mu.Unlock()
	for _, l := range lanes {
		asked = append(asked, lease{conversation: l.key.conversation})
	}
	var answers []*redis.Cmd
	switch {
	case len(asked) > 0:
		var err error
		if answers, err = s.each(ctx, leaseTake, asked, func(lease) []any { return s.askArgs("") }); err != nil {
			answers = nil
			e.metrics.leaseFailures.Inc()
		}
	case s.failing.Load() != 0:
		call, cancel := context.WithTimeout(ctx, handoverTimeout)
		s.note(s.redis.Ping(call).Err())
		cancel()
	}
	blind := s.blind()
	if len(lanes) == 0 || answers == nil && !blind {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for i, l := range lanes {
		ok := blind
		if answers != nil {
			c, err := toClaim(answers[i])
			ok = err == nil && c.ok
			if err == nil && !c.ok {
				l.blockedBy = c.by
			}
		}
		if _, waits := s.parked[l]; ok && waits {
			delete(s.parked, l)
			e.makeReady(l, now)
			e.schedule.first(l) // it had its slot, and gave it back
		}
	}
	e.metrics.parked.Set(float64(len(s.parked)))
	e.dispatch()
}
