package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"millrace"
)

const (
	cellWidth = 100 * time.Millisecond
	guard     = 500 * time.Millisecond
	window    = Minute + guard
	// recheck is when a request refused for concurrency is asked for again if no
	// grant of this process ends before.
	recheck = 100 * time.Millisecond
)

// Defaults of [Config].
const (
	DefaultPrefix      = "millrace:limit:"
	DefaultLease       = 2 * time.Minute
	DefaultCallTimeout = time.Second
	DefaultAttempts    = 3
)

var (
	// ErrUnavailable says that Redis could not be asked, so nothing was granted.
	ErrUnavailable = errors.New("the limiter is unavailable")
	// ErrTooLarge says that a request takes more than a limit allows in a minute:
	// it would wait for ever.
	ErrTooLarge = errors.New("the request is larger than a limit")
)

// Config configures a [Limiter]. The zero value limits nothing.
type Config struct {
	// Redis holds the ledgers. Required when there are Limits. The caller closes it.
	Redis redis.UniversalClient
	// Limits are what must hold. None: every request passes, without Redis.
	Limits Limits
	// Priorities are the priorities, first to last served. A priority that is not
	// among them comes last. Nil means millrace.DefaultPriorities().
	Priorities []millrace.Priority
	// Prefix starts every key. Empty means [DefaultPrefix].
	Prefix string
	// Lease is how long a grant that is not ended keeps its place in concurrency.
	// 0 means [DefaultLease]. A request can ask for another.
	Lease time.Duration
	// CallTimeout bounds one call of Redis. 0 means [DefaultCallTimeout].
	CallTimeout time.Duration
	// Attempts is how often Redis is called before the limiter counts as
	// unavailable. 0 means [DefaultAttempts].
	Attempts int

	Logger zerolog.Logger
	// Metrics registers the limiter's metrics. Nil: they are not registered.
	Metrics prometheus.Registerer
}

// Limiter grants requests within limits that it shares with all limiters on the
// same Redis. Its methods may be called from many goroutines.
type Limiter struct {
	redis       redis.UniversalClient
	limits      Limits
	rank        map[millrace.Priority]int
	prefix      string
	lease       time.Duration
	callTimeout time.Duration
	attempts    int
	log         zerolog.Logger
	metrics     *metrics

	mu     sync.Mutex
	queues map[string]map[string]*queue // by account and queue name
	frozen map[scope]time.Time          // what this process froze, where Redis is not asked
}

type scope struct{ account, model string }

// New returns a limiter. It does not call Redis.
func New(cfg Config) (*Limiter, error) {
	var errs []error
	if err := cfg.Limits.Validate(); err != nil {
		errs = append(errs, err)
	}
	if cfg.Redis == nil && len(cfg.Limits) > 0 {
		errs = append(errs, errors.New("redis: missing, and there are limits to hold"))
	}
	for name, d := range map[string]time.Duration{"lease": cfg.Lease, "call timeout": cfg.CallTimeout} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s %s: negative", name, d))
		}
	}
	if cfg.Lease > 0 && cfg.Lease < window {
		errs = append(errs, fmt.Errorf("lease %s: want at least %s, for a grant has to outlive its charges", cfg.Lease, window))
	}
	if cfg.Attempts < 0 {
		errs = append(errs, fmt.Errorf("attempts %d: negative", cfg.Attempts))
	}
	priorities := cfg.Priorities
	if priorities == nil {
		priorities = millrace.DefaultPriorities()
	}
	rank := make(map[millrace.Priority]int, len(priorities))
	for i, p := range priorities {
		if err := p.Validate(); err != nil {
			errs = append(errs, err)
		}
		rank[p] = i
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("limiter: %w", errors.Join(errs...))
	}
	l := &Limiter{
		redis:       cfg.Redis,
		limits:      slices.Clone(cfg.Limits),
		rank:        rank,
		prefix:      cfg.Prefix,
		lease:       cfg.Lease,
		callTimeout: cfg.CallTimeout,
		attempts:    cfg.Attempts,
		log:         cfg.Logger,
		metrics:     m,
		queues:      make(map[string]map[string]*queue),
		frozen:      make(map[scope]time.Time),
	}
	if l.prefix == "" {
		l.prefix = DefaultPrefix
	}
	if l.lease == 0 {
		l.lease = DefaultLease
	}
	if l.callTimeout == 0 {
		l.callTimeout = DefaultCallTimeout
	}
	if l.attempts == 0 {
		l.attempts = DefaultAttempts
	}
	return l, nil
}

// StartUnspent begins the ledgers of accounts as unspent: for an installation
// that is new, or whose accounts nothing else has used in the past minute.
// Ledgers that exist stay as they are. Without it a limiter that finds no
// ledgers assumes the worst (see the package's description).
func (l *Limiter) StartUnspent(ctx context.Context, accounts ...string) error {
	for _, account := range accounts {
		key := l.generationKey(account)
		if err := l.call(ctx, func(ctx context.Context) error {
			return l.redis.SetNX(ctx, key, "0", 0).Err()
		}); err != nil {
			return fmt.Errorf("start ledgers of account %q: %w", account, err)
		}
	}
	return nil
}

// Freeze stops all grants of an account's model for a time, in all processes: a
// provider has refused a request and asked to be left alone. A random addition
// keeps independent installations from coming back at one instant. Where no
// limit applies and Redis is not asked, the freeze holds in this process alone.
func (l *Limiter) Freeze(ctx context.Context, account, model string, retryAfter time.Duration) error {
	retryAfter = max(retryAfter, cellWidth)
	retryAfter += rand.N(min(retryAfter/4, 5*time.Second) + cellWidth) //nolint:gosec // spread, not secrecy
	l.metrics.freezes.WithLabelValues(account, model).Inc()
	l.log.Warn().Str("account", account).Str("model", model).Dur("freeze", retryAfter).
		Msg("the provider refused a request, grants are frozen")

	s := scope{account, model}
	until := time.Now().Add(retryAfter)
	l.mu.Lock()
	for other, past := range l.frozen {
		if !past.After(time.Now()) {
			delete(l.frozen, other)
		}
	}
	if until.After(l.frozen[s]) {
		l.frozen[s] = until
	}
	l.mu.Unlock()

	if !l.limited(account) {
		return nil
	}
	if err := l.freeze(ctx, l.frozenKey(account, model), retryAfter); err != nil {
		return fmt.Errorf("freeze account %q, model %q: %w", account, model, err)
	}
	return nil
}

// limited reports whether any limit may apply to an account's requests.
func (l *Limiter) limited(account string) bool {
	return slices.ContainsFunc(l.limits, func(limit Limit) bool { return limit.Account == account })
}

// frozenFor returns how long this process's own freeze still lasts.
func (l *Limiter) frozenFor(s scope) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.frozen[s]), 0)
}
