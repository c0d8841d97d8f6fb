package ratelimit

import (
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// BenchmarkAcquireUnsaturated measures a grant and its end far below the limit.
// The Redis is an in-process one with an interpreted Lua, slower than a real
// one.
func BenchmarkAcquireUnsaturated(b *testing.B) {
	server := miniredis.RunT(b)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer func() { _ = client.Close() }()
	l, err := New(Config{Redis: client, Limits: Limits{{
		Account: "a", RequestsPerMinute: maxLimit, TokensPerMinute: maxLimit, Concurrency: 1000,
	}}})
	if err != nil {
		b.Fatal(err)
	}
	if err := l.StartUnspent(b.Context(), "a"); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		g, err := l.Acquire(b.Context(), Request{Account: "a", InputTokens: 100, OutputTokens: 100})
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Settle(b.Context(), Usage{InputTokens: 100, OutputTokens: 50}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAcquireUnlimited(b *testing.B) {
	l, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		g, err := l.Acquire(b.Context(), Request{Account: "a"})
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Release(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
