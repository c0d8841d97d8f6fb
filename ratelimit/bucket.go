package ratelimit

import (
	"net/url"
	"strings"
)

// dimension is a quantity that a limit bounds.
type dimension struct {
	name    string
	setting string
	held    bool // counted while under way, instead of per minute
	of      func(Limit) int64
	charge  func(Usage) int64
}

const dimConcurrency = "concurrency"

var dimensions = []dimension{
	{
		name: "requests", setting: "requests_per_minute",
		of:     func(l Limit) int64 { return l.RequestsPerMinute },
		charge: func(Usage) int64 { return 1 },
	},
	{
		name: "input_tokens", setting: "input_tokens_per_minute",
		of:     func(l Limit) int64 { return l.InputTokensPerMinute },
		charge: func(u Usage) int64 { return u.InputTokens },
	},
	{
		name: "output_tokens", setting: "output_tokens_per_minute",
		of:     func(l Limit) int64 { return l.OutputTokensPerMinute },
		charge: func(u Usage) int64 { return u.OutputTokens },
	},
	{
		name: "tokens", setting: "tokens_per_minute",
		of:     func(l Limit) int64 { return l.TokensPerMinute },
		charge: func(u Usage) int64 { return u.InputTokens + u.OutputTokens },
	},
	{
		name: dimConcurrency, setting: "concurrency", held: true,
		of:     func(l Limit) int64 { return l.Concurrency },
		charge: func(Usage) int64 { return 1 },
	},
}

// Usage is what a request takes, estimated or measured.
type Usage struct {
	InputTokens  int64
	OutputTokens int64
}

// bucket is one dimension of one limit, as it applies to one request.
type bucket struct {
	key     string
	dim     *dimension
	limit   int64
	charge  int64
	burstMS int64
}

func (b *bucket) kind() string {
	if b.dim.held {
		return "held"
	}
	return "rate"
}

// buckets returns what a request is charged to, in the order of the limits.
func (l *Limiter) buckets(r *Request) []bucket {
	var bs []bucket
	for _, limit := range l.limits {
		if !limit.applies(r) {
			continue
		}
		scope := l.scopeKey(limit, r)
		for i := range dimensions {
			d := &dimensions[i]
			n := d.of(limit)
			if n == 0 {
				continue
			}
			burst := limit.Burst
			if burst == 0 {
				burst = DefaultBurst
			}
			bs = append(bs, bucket{
				key:     scope + d.name,
				dim:     d,
				limit:   n,
				charge:  d.charge(r.usage()),
				burstMS: burst.Milliseconds(),
			})
		}
	}
	return bs
}

// scopeKey names the scope of a limit. A part that is not narrowed is left
// empty, which no name is.
func (l *Limiter) scopeKey(limit Limit, r *Request) string {
	tenant := ""
	if limit.Tenant != "" {
		tenant = r.Tenant
		if limit.Tenant == Each {
			// Its own bucket, even when the tenant has a limit by name as well.
			tenant = Each + tenant
		}
	}
	return l.accountKey(r.Account) + "bucket:" +
		escape(limit.Model) + ":" + escape(tenant) + ":" + escape(string(limit.Priority)) + ":"
}

// accountKey is the prefix of an account's keys. The braces make the account
// their hash tag.
func (l *Limiter) accountKey(account string) string {
	return l.prefix + "{" + escape(account) + "}:"
}

func (l *Limiter) generationKey(account string) string { return l.accountKey(account) + "generation" }
func (l *Limiter) grantsKey(account string) string     { return l.accountKey(account) + "grants" }

func (l *Limiter) frozenKey(account, model string) string {
	return l.accountKey(account) + "frozen:" + escape(model)
}

// escape keeps colons and braces of a name out of a key's structure.
func escape(name string) string { return url.QueryEscape(name) }

// queueName is the same for requests that are charged to the same buckets.
func queueName(model string, bs []bucket) string {
	var s strings.Builder
	s.WriteString(escape(model))
	for i := range bs {
		s.WriteByte(' ')
		s.WriteString(bs[i].key)
	}
	return s.String()
}
