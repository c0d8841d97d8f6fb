package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"millrace"
)

// Request is what a caller wants to send to a provider.
type Request struct {
	// Account and Model say where to. Account is required.
	Account string
	Model   string
	// Tenant and Priority say for whom. Limits can be narrowed to them.
	Tenant   string
	Priority millrace.Priority
	// InputTokens and OutputTokens are what the request reserves: estimates, or
	// for a bound on actual use the most that it can take.
	InputTokens  int64
	OutputTokens int64
	// Lease is the longest time that the request can be under way. 0 means the
	// limiter's. At least the window of 60.5 s.
	Lease time.Duration
}

func (r *Request) usage() Usage {
	return Usage{InputTokens: r.InputTokens, OutputTokens: r.OutputTokens}
}

func (r *Request) validate() error {
	var errs []error
	if r.Account == "" {
		errs = append(errs, errors.New("account: missing"))
	}
	if r.InputTokens < 0 || r.OutputTokens < 0 {
		errs = append(errs, fmt.Errorf("%d input and %d output tokens: negative", r.InputTokens, r.OutputTokens))
	}
	if r.Lease < 0 {
		errs = append(errs, fmt.Errorf("lease %s: negative", r.Lease))
	}
	return errors.Join(errs...)
}

// Acquire waits until a request may be sent and returns its grant, which the
// caller must end: with [Grant.Settle] when the usage is known, [Grant.Cancel]
// when the request was not sent, [Grant.Release] otherwise.
//
// It fails with ctx's error, with [ErrUnavailable] when Redis cannot be asked,
// which counts as an outage for [millrace.IsUnavailable], and with [ErrTooLarge] when no waiting would help.
func (l *Limiter) Acquire(ctx context.Context, r Request) (*Grant, error) {
	start := time.Now()
	g, err := l.acquire(ctx, &r)
	if err != nil {
		l.metrics.failed(&r, err)
		if errors.Is(err, ErrUnavailable) {
			err = millrace.UnavailableDependency(millrace.Redis, err)
		}
		return nil, fmt.Errorf("acquire from account %q, model %q: %w", r.Account, r.Model, err)
	}
	l.metrics.granted(&r, time.Since(start))
	return g, nil
}

func (l *Limiter) acquire(ctx context.Context, r *Request) (*Grant, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g := &Grant{limiter: l, account: r.Account, reserved: r.usage(), buckets: l.buckets(r)}
	if len(g.buckets) == 0 {
		return g, sleep(ctx, l.frozenFor(scope{r.Account, r.Model}))
	}
	for i := range g.buckets {
		if b := &g.buckets[i]; b.charge > b.limit {
			return nil, fmt.Errorf("%w: it takes %d of %s %d", ErrTooLarge, b.charge, b.dim.setting, b.limit)
		}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make grant id: %w", err)
	}
	g.id = id.String()
	g.lease = max(r.Lease, window)
	if r.Lease == 0 {
		g.lease = l.lease
	}

	q := l.enter(r.Account, queueName(r.Model, g.buckets))
	defer l.leave(r.Account, q)
	w := q.arrive(l.rankOf(r.Priority))
	l.metrics.waiting.Inc()
	defer l.metrics.waiting.Dec()
	err = q.wait(ctx, w, func(ctx context.Context) (verdict, error) {
		v, err := l.ask(ctx, g, l.frozenKey(r.Account, r.Model))
		if err == nil && !v.granted {
			l.metrics.refused(r, v.blocker)
		}
		return v, err
	})
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		// Granted while the caller gave up: nobody will send the request.
		if cancelErr := g.Cancel(ctx); cancelErr != nil {
			l.log.Warn().Err(cancelErr).Str("account", r.Account).Msg("an unused grant stays charged until it ages out")
		}
		return nil, err
	}
	return g, nil
}

func (l *Limiter) rankOf(p millrace.Priority) int {
	if rank, ok := l.rank[p]; ok {
		return rank
	}
	return len(l.rank)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
