package ratelimit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	//go:embed lua/acquire.lua
	acquireSource string
	//go:embed lua/settle.lua
	settleSource string
	//go:embed lua/freeze.lua
	freezeSource string

	acquireScript = redis.NewScript(acquireSource)
	settleScript  = redis.NewScript(settleSource)
	freezeScript  = redis.NewScript(freezeSource)
)

// backoff is the wait after the first failed call; it doubles.
const backoff = 50 * time.Millisecond

// ask lets Redis decide on a grant. The script knows the grant's id, so a call
// whose reply was lost is safe to repeat.
func (l *Limiter) ask(ctx context.Context, g *Grant, frozenKey string) (verdict, error) {
	keys := make([]string, 0, 3+len(g.buckets))
	keys = append(keys, l.generationKey(g.account), frozenKey, l.grantsKey(g.account))
	args := make([]any, 0, 5+4*len(g.buckets))
	args = append(args, g.id, g.lease.Milliseconds(), window.Milliseconds(), cellWidth.Milliseconds(), recheck.Milliseconds())
	for i := range g.buckets {
		b := &g.buckets[i]
		keys = append(keys, b.key)
		args = append(args, b.kind(), b.charge, b.limit, b.burstMS)
	}
	var reply []int64
	err := l.call(ctx, func(ctx context.Context) error {
		var err error
		reply, err = acquireScript.Run(ctx, l.redis, keys, args...).Int64Slice()
		return err
	})
	switch {
	case err != nil:
		return verdict{}, err
	case len(reply) == 2 && reply[0] == 1:
		g.at = reply[1]
		return verdict{granted: true}, nil
	case len(reply) == 4 && reply[0] == 0:
		return verdict{
			retry:   time.Duration(reply[2]-reply[1]) * time.Millisecond,
			blocker: blocker(g.buckets, reply[3]),
		}, nil
	}
	return verdict{}, fmt.Errorf("%w: unexpected reply %v", ErrUnavailable, reply)
}

// What can refuse a request besides a dimension.
const (
	blockerFrozen      = "frozen"
	blockerLostLedgers = "lost_ledgers"
)

func blocker(bs []bucket, n int64) string {
	switch {
	case n >= 1 && n <= int64(len(bs)):
		return bs[n-1].dim.name
	case n == 0:
		return blockerFrozen
	}
	return blockerLostLedgers
}

// settle ends a grant. The script ends a grant only once, so a call whose reply
// was lost is safe to repeat.
func (l *Limiter) settle(ctx context.Context, g *Grant, changes []int64) error {
	keys := make([]string, 0, 1+len(g.buckets))
	keys = append(keys, l.grantsKey(g.account))
	args := make([]any, 0, 3+3*len(g.buckets))
	args = append(args, g.id, g.at, cellWidth.Milliseconds())
	for i := range g.buckets {
		b := &g.buckets[i]
		keys = append(keys, b.key)
		args = append(args, b.kind(), changes[i], b.limit)
	}
	return l.call(ctx, func(ctx context.Context) error {
		return settleScript.Run(ctx, l.redis, keys, args...).Err()
	})
}

func (l *Limiter) freeze(ctx context.Context, key string, d time.Duration) error {
	return l.call(ctx, func(ctx context.Context) error {
		return freezeScript.Run(ctx, l.redis, []string{key}, d.Milliseconds()).Err()
	})
}

// call runs a call of Redis until it succeeds, as often as configured. A call
// under way is not cut short by the caller's end: its outcome, a grant perhaps,
// would stay unknown.
func (l *Limiter) call(ctx context.Context, do func(context.Context) error) error {
	var errs []error
	wait := backoff
	for attempt := range l.attempts {
		if attempt > 0 {
			if err := sleep(ctx, wait); err != nil {
				return errors.Join(append(errs, err)...)
			}
			wait *= 2
		}
		err := l.callOnce(ctx, do)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("%w: redis: %w", ErrUnavailable, errs[len(errs)-1])
}

func (l *Limiter) callOnce(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.callTimeout)
	defer cancel()
	return do(ctx)
}
