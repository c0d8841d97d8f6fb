package sim

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"
)

const minute = time.Minute

// Limits are what an API key may use. 0 means no limit.
type Limits struct {
	RequestsPerMinute int64
	// TokensPerMinute counts input and output together.
	TokensPerMinute int64
	Concurrency     int64
}

func (l Limits) validate(what string) error {
	var errs []error
	for name, n := range map[string]int64{
		"requests per minute": l.RequestsPerMinute, "tokens per minute": l.TokensPerMinute, "concurrency": l.Concurrency,
	} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("%s: %s %d: negative", what, name, n))
		}
	}
	return errors.Join(errs...)
}

// account is what an API key has used.
type account struct {
	spent    []spend // in the last minute, oldest first
	tokens   int64   // sum of spent
	inFlight int64
	peaks    Peaks
}

type spend struct {
	at     time.Time
	tokens int64
}

// Peaks are the most that a key has used in any 60 seconds, or at once.
type Peaks struct {
	RequestsPerMinute int64 `json:"requests_per_minute"`
	TokensPerMinute   int64 `json:"tokens_per_minute"`
	Concurrency       int64 `json:"concurrency"`
}

// standing is where a key stands after a request, for the response headers.
type standing struct {
	limits                                 Limits
	requests, tokens                       int64 // used in the last minute
	now, requestReset, tokenReset, retryAt time.Time
}

func (st standing) remaining(limit, used int64) int64 { return max(limit-used, 0) }

// admit judges a request at its arrival.
func (s *Simulator) admit(key string, limits Limits, c *call) (*account, standing, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	a := s.keys[key]
	if a == nil {
		a = &account{}
		s.keys[key] = a
	}
	for len(a.spent) > 0 && !a.spent[0].at.After(now.Add(-minute)) {
		a.tokens -= a.spent[0].tokens
		a.spent = a.spent[1:]
	}
	tokens := c.input + c.output
	refusal, retryAt := a.judge(limits, c.model, tokens, now)
	if refusal == nil {
		a.spent = append(a.spent, spend{now, tokens})
		a.tokens += tokens
		a.inFlight++
		a.peaks.RequestsPerMinute = max(a.peaks.RequestsPerMinute, int64(len(a.spent)))
		a.peaks.TokensPerMinute = max(a.peaks.TokensPerMinute, a.tokens)
		a.peaks.Concurrency = max(a.peaks.Concurrency, a.inFlight)
	}
	st := standing{
		limits: limits, requests: int64(len(a.spent)), tokens: a.tokens,
		now: now, requestReset: now, tokenReset: now, retryAt: retryAt,
	}
	if n := len(a.spent); n > 0 {
		st.requestReset = a.spent[n-1].at.Add(minute)
		st.tokenReset = st.requestReset
	}
	return a, st, refusal
}

func (a *account) judge(limits Limits, model string, tokens int64, now time.Time) (*apiError, time.Time) {
	refuse := func(what, short string, limit, used, requested int64, retryAt time.Time) (*apiError, time.Time) {
		return &apiError{
			status: http.StatusTooManyRequests,
			code:   what,
			message: fmt.Sprintf("Rate limit reached for %s on %s per min (%s): Limit %d, Used %d, Requested %d. Please try again in %s.",
				model, what, short, limit, used, requested, retryAt.Sub(now).Round(time.Millisecond)),
		}, retryAt
	}
	if n := limits.RequestsPerMinute; n > 0 && int64(len(a.spent)) >= n {
		return refuse("requests", "RPM", n, int64(len(a.spent)), 1, a.spent[len(a.spent)-int(n)].at.Add(minute))
	}
	if n := limits.TokensPerMinute; n > 0 && a.tokens+tokens > n {
		lacking, retryAt := a.tokens+tokens-n, now.Add(minute)
		for _, sp := range a.spent {
			if lacking -= sp.tokens; lacking <= 0 {
				retryAt = sp.at.Add(minute)
				break
			}
		}
		return refuse("tokens", "TPM", n, a.tokens, tokens, retryAt)
	}
	if n := limits.Concurrency; n > 0 && a.inFlight >= n {
		return &apiError{
			status: http.StatusTooManyRequests, code: "requests",
			message: fmt.Sprintf("Too many concurrent requests for %s: Limit %d.", model, n),
		}, now.Add(time.Second)
	}
	return nil, time.Time{}
}

func (s *Simulator) leave(a *account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.inFlight--
}

// retryAfter is in whole seconds, rounded up, as the header wants it.
func (st standing) retryAfter() int64 {
	return int64(math.Ceil(max(st.retryAt.Sub(st.now), 0).Seconds()))
}
