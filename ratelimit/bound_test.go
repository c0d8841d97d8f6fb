package ratelimit

import (
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"millrace"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the randomised history; 0 takes a new one")

type charge struct {
	at     time.Time
	tokens int64
}

// most returns the largest sum of charges in any half-open interval of length d.
func most(charges []charge, d time.Duration) int64 {
	var sum, top int64
	from := 0
	for _, c := range charges {
		for ; !charges[from].at.After(c.at.Add(-d)); from++ {
			sum -= charges[from].tokens
		}
		sum += c.tokens
		top = max(top, sum)
	}
	return top
}

// TestNoSlidingMinuteExceedsTheLimit runs several limiters with far more demand
// than the limits allow, on random sizes, pauses, settlements and
// cancellations, and judges what was granted from outside.
func TestNoSlidingMinuteExceedsTheLimit(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -seed=%d", seed)
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		const (
			requests, tokens, concurrency = 90, 30_000, 8
			processes, workers            = 3, 5
			duration                      = 6 * time.Minute
		)
		limit := Limit{
			Account: "a", RequestsPerMinute: requests, TokensPerMinute: tokens,
			Concurrency: concurrency, Burst: 20 * time.Second,
		}
		var (
			mu      sync.Mutex
			granted []charge // what was reserved, less what was cancelled
			held    int
			wg      sync.WaitGroup
		)
		end := time.Now().Add(duration)
		for p := range processes {
			l := newLimiter(t, client, limit)
			for w := range workers {
				random := rand.New(rand.NewPCG(seed, uint64(p*workers+w)))
				wg.Go(func() {
					for time.Now().Before(end) {
						r := Request{
							Account: "a", Priority: millrace.DefaultPriorities()[random.IntN(3)],
							InputTokens: random.Int64N(600), OutputTokens: random.Int64N(400),
						}
						g, err := l.Acquire(t.Context(), r)
						if err != nil {
							t.Error(err)
							return
						}
						at := time.UnixMilli(g.at)
						mu.Lock()
						if held++; held > concurrency {
							t.Errorf("%d at once, limit %d", held, concurrency)
						}
						granted = append(granted, charge{at, r.InputTokens + r.OutputTokens})
						mu.Unlock()

						<-time.After(time.Duration(random.IntN(2000)) * time.Millisecond)
						mu.Lock()
						held--
						mu.Unlock()
						if random.IntN(2) == 0 {
							err = g.Release(t.Context())
						} else {
							err = g.Settle(t.Context(), Usage{InputTokens: r.InputTokens, OutputTokens: r.OutputTokens})
						}
						if err != nil {
							t.Error(err)
						}
						if random.IntN(50) == 0 {
							<-time.After(time.Duration(random.IntN(60)) * time.Second)
						}
					}
				})
			}
		}
		wg.Wait()
		ones := make([]charge, len(granted))
		for i, c := range granted {
			ones[i] = charge{c.at, 1}
		}
		if n := most(ones, Minute); n > requests {
			t.Errorf("%d requests in a minute, limit %d", n, requests)
		}
		if n := most(granted, Minute); n > tokens {
			t.Errorf("%d tokens in a minute, limit %d", n, tokens)
		}
		var all int64
		for _, c := range granted {
			all += c.tokens
		}
		if want := int64(duration.Minutes() * tokens * 0.9); all < want {
			t.Errorf("%d tokens granted, want at least %d: demand was there", all, want)
		}
	})
}

// TestSettledUseStaysWithinTheLimit reserves the most that a request can use,
// settles less, and judges what was used.
func TestSettledUseStaysWithinTheLimit(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -seed=%d", seed)
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		const tokens = 10_000
		l := newLimiter(t, client, Limit{Account: "a", OutputTokensPerMinute: tokens, Burst: Minute})
		random := rand.New(rand.NewPCG(seed, 1))
		var used []charge
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range 400 {
			reserve := random.Int64N(1000)
			use := random.Int64N(reserve + 1)
			takes := time.Duration(random.IntN(20_000)) * time.Millisecond
			g := acquire(t, l, Request{Account: "a", OutputTokens: reserve})
			mu.Lock()
			used = append(used, charge{time.UnixMilli(g.at), use})
			mu.Unlock()
			wg.Go(func() {
				<-time.After(takes)
				if err := g.Settle(t.Context(), Usage{OutputTokens: use}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := most(used, Minute); n > tokens {
			t.Errorf("%d tokens used in a minute, limit %d", n, tokens)
		}
	})
}
