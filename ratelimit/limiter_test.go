package ratelimit

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/goleak"

	"millrace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bubble runs a test on fake time, with a Redis inside the bubble whose clock is
// the fake one.
func bubble(t *testing.T, test func(t *testing.T, server *miniredis.Miniredis, client redis.UniversalClient)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := miniredis.NewMiniRedis()
		server.ClockTTL(true)
		client := redis.NewClient(&redis.Options{
			Dialer:                   func(context.Context, string, string) (net.Conn, error) { return server.Dial() },
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
			DisableIdentity:          true,
		})
		defer server.Close()
		defer func() { _ = client.Close() }()
		test(t, server, client)
	})
}

// newLimiter returns a limiter on ledgers that begin unspent.
func newLimiter(t *testing.T, client redis.UniversalClient, limits ...Limit) *Limiter {
	t.Helper()
	l, err := New(Config{Redis: client, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range limits {
		if err := l.StartUnspent(t.Context(), limit.Account); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func acquire(t *testing.T, l *Limiter, r Request) *Grant {
	t.Helper()
	g, err := l.Acquire(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// waited returns how long Acquire takes.
func waited(t *testing.T, l *Limiter, r Request) time.Duration {
	t.Helper()
	start := time.Now()
	acquire(t, l, r)
	return time.Since(start)
}

func TestNoLimitsNeedNoRedis(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	g := acquire(t, l, Request{Account: "a", InputTokens: 1 << 50})
	if err := g.Settle(t.Context(), Usage{InputTokens: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Limits: Limits{{Account: "a", Concurrency: 1}}}); err == nil {
		t.Fatal("limits without Redis were accepted")
	}
}

func TestNewReportsAllThatIsWrong(t *testing.T) {
	_, err := New(Config{Lease: time.Second, Attempts: -1, Limits: Limits{{Account: "a"}}, Priorities: []millrace.Priority{"UP"}})
	for _, want := range []string{"lease 1s", "attempts -1", "limits nothing", "redis: missing", `priority "UP"`} {
		if !contains(err, want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestMinuteIsNotExceededAndFullyUsed(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", RequestsPerMinute: 10, Burst: Minute})
		for range 10 {
			if d := waited(t, l, Request{Account: "a"}); d != 0 {
				t.Fatalf("waited %s below the limit", d)
			}
		}
		if d := waited(t, l, Request{Account: "a"}); d < Minute || d > window+cellWidth {
			t.Fatalf("the request over the limit waited %s, want a minute and the guard", d)
		}
	})
}

func TestSmoothingSpreadsAMinute(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", RequestsPerMinute: 60, Burst: 5 * time.Second})
		start := time.Now()
		for range 5 {
			acquire(t, l, Request{Account: "a"})
		}
		if d := time.Since(start); d != 0 {
			t.Fatalf("the burst took %s", d)
		}
		for range 5 {
			if d := waited(t, l, Request{Account: "a"}); d != time.Second {
				t.Fatalf("waited %s, want a second at 60 a minute", d)
			}
		}
	})
}

func TestRequestLargerThanBurstPasses(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", TokensPerMinute: 600, Burst: time.Second})
		if d := waited(t, l, Request{Account: "a", InputTokens: 200, OutputTokens: 100}); d != 0 {
			t.Fatalf("waited %s", d)
		}
		if d := waited(t, l, Request{Account: "a", InputTokens: 300}); d != 30*time.Second {
			t.Fatalf("waited %s, want the 30s that the first request took from the pace", d)
		}
	})
}

func TestRequestLargerThanLimitFails(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", OutputTokensPerMinute: 100})
		_, err := l.Acquire(t.Context(), Request{Account: "a", OutputTokens: 101})
		if !errors.Is(err, ErrTooLarge) || !contains(err, "output_tokens_per_minute 100") {
			t.Fatalf("got %v, want ErrTooLarge with the limit", err)
		}
	})
}

func TestRefusalChargesNoDimension(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client,
			Limit{Account: "a", InputTokensPerMinute: 1000, Burst: Minute},
			Limit{Account: "a", Model: "small", RequestsPerMinute: 1, Burst: Minute})
		acquire(t, l, Request{Account: "a", Model: "small", InputTokens: 100})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := l.Acquire(ctx, Request{Account: "a", Model: "small", InputTokens: 900}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the deadline", err)
		}
		if d := waited(t, l, Request{Account: "a", Model: "large", InputTokens: 900}); d != 0 {
			t.Fatalf("waited %s: the refused request was charged", d)
		}
	})
}

func TestScopesAreApart(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client,
			Limit{Account: "a", Tenant: Each, RequestsPerMinute: 1},
			Limit{Account: "a", Priority: millrace.Batch, RequestsPerMinute: 2, Burst: Minute})
		for _, r := range []Request{
			{Account: "a", Tenant: "t1"},
			{Account: "a", Tenant: "t2", Priority: millrace.Batch},
			{Account: "a", Tenant: "t3", Priority: millrace.Batch},
			{Account: "a"},
			{Account: "a"},
			{Account: "b", Tenant: "t1"},
		} {
			if d := waited(t, l, r); d != 0 {
				t.Errorf("%+v waited %s", r, d)
			}
		}
		for _, r := range []Request{
			{Account: "a", Tenant: "t4", Priority: millrace.Batch},
			{Account: "a", Tenant: "t4"},
		} {
			if d := waited(t, l, r); d == 0 {
				t.Errorf("%+v did not wait", r)
			}
		}
	})
}

func TestSettleGivesBackWhatWasNotUsed(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", OutputTokensPerMinute: 100, Burst: Minute})
		g := acquire(t, l, Request{Account: "a", OutputTokens: 100})
		<-time.After(5 * time.Second)
		if err := g.Settle(t.Context(), Usage{OutputTokens: 40}); err != nil {
			t.Fatal(err)
		}
		if err := g.Settle(t.Context(), Usage{}); err != nil { // no second effect
			t.Fatal(err)
		}
		if d := waited(t, l, Request{Account: "a", OutputTokens: 60}); d != 0 {
			t.Fatalf("waited %s for what was given back", d)
		}
		if d := waited(t, l, Request{Account: "a", OutputTokens: 40}); d < 55*time.Second || d > 56*time.Second {
			t.Fatalf("waited %s, want until a minute after the first grant", d)
		}
	})
}

func TestSettleWakesAWaiter(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", OutputTokensPerMinute: 100, Burst: Minute})
		g := acquire(t, l, Request{Account: "a", OutputTokens: 100})
		go func() {
			<-time.After(3 * time.Second)
			if err := g.Cancel(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}()
		if d := waited(t, l, Request{Account: "a", OutputTokens: 100}); d != 3*time.Second {
			t.Fatalf("waited %s, want until the other was cancelled", d)
		}
	})
}

func TestOverrunBlocksUntilItAgesOut(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", OutputTokensPerMinute: 100, Burst: Minute})
		g := acquire(t, l, Request{Account: "a", OutputTokens: 10})
		if err := g.Settle(t.Context(), Usage{OutputTokens: 150}); err != nil {
			t.Fatal(err)
		}
		if d := waited(t, l, Request{Account: "a"}); d < Minute {
			t.Fatalf("waited %s after an overrun", d)
		}
	})
}

func TestConcurrencyIsHeldAndReturned(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", Concurrency: 2})
		other := newLimiter(t, client, Limit{Account: "a", Concurrency: 2})
		g := acquire(t, l, Request{Account: "a"})
		acquire(t, other, Request{Account: "a"})
		go func() {
			<-time.After(1250 * time.Millisecond)
			if err := g.Release(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		}()
		if d := waited(t, other, Request{Account: "a"}); d < 1250*time.Millisecond || d > 1250*time.Millisecond+recheck {
			t.Fatalf("waited %s for a release of another process after 1.25s", d)
		}
	})
}

func TestKilledHolderReturnsAfterItsLease(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", Concurrency: 1})
		acquire(t, l, Request{Account: "a", Lease: 90 * time.Second})
		if d := waited(t, l, Request{Account: "a"}); d < 90*time.Second || d > 90*time.Second+recheck {
			t.Fatalf("waited %s for a lease of 90s", d)
		}
	})
}

func TestFreezeStopsAllProcesses(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		limit := Limit{Account: "a", RequestsPerMinute: 1000}
		l, other := newLimiter(t, client, limit), newLimiter(t, client, limit)
		if err := l.Freeze(t.Context(), "a", "m", 20*time.Second); err != nil {
			t.Fatal(err)
		}
		if err := l.Freeze(t.Context(), "a", "m", time.Second); err != nil { // does not shorten it
			t.Fatal(err)
		}
		if d := waited(t, other, Request{Account: "a", Model: "other"}); d != 0 {
			t.Fatalf("another model waited %s", d)
		}
		if d := waited(t, other, Request{Account: "a", Model: "m"}); d < 20*time.Second || d > 26*time.Second {
			t.Fatalf("waited %s, want 20s and a bit", d)
		}
	})
}

func TestFreezeWithoutLimitsHoldsInTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Freeze(t.Context(), "a", "m", time.Second); err != nil {
			t.Fatal(err)
		}
		if d := waited(t, l, Request{Account: "a", Model: "m"}); d < time.Second {
			t.Fatalf("waited %s", d)
		}
	})
}

func TestLostLedgersCountAsSpent(t *testing.T) {
	bubble(t, func(t *testing.T, server *miniredis.Miniredis, client redis.UniversalClient) {
		limit := Limit{Account: "a", RequestsPerMinute: 1000}
		l := newLimiter(t, client, limit)
		acquire(t, l, Request{Account: "a"})
		server.FlushAll()
		if d := waited(t, l, Request{Account: "a"}); d != window {
			t.Fatalf("waited %s after Redis had lost its data, want %s", d, window)
		}
		if d := waited(t, l, Request{Account: "a"}); d != 0 {
			t.Fatalf("waited %s after the debt was over", d)
		}
	})
}

func TestUnreachableRedisNeverOpens(t *testing.T) {
	bubble(t, func(t *testing.T, server *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", RequestsPerMinute: 1000})
		server.SetError("LOADING the dataset")
		const n = 20
		errs := make(chan error, n)
		start := time.Now()
		for range n {
			go func() {
				_, err := l.Acquire(t.Context(), Request{Account: "a"})
				errs <- err
			}()
		}
		for range n {
			if err := <-errs; !errors.Is(err, ErrUnavailable) || !millrace.IsUnavailable(err) {
				t.Fatalf("got %v, want ErrUnavailable", err)
			}
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Fatalf("it took %s to say so", d)
		}
		server.SetError("")
		acquire(t, l, Request{Account: "a"})
	})
}

func TestLostReplyIsNotChargedTwice(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", RequestsPerMinute: 2, Burst: Minute})
		r := Request{Account: "a"}
		g := &Grant{limiter: l, account: "a", id: "one", lease: l.lease, buckets: l.buckets(&r)}
		for range 3 {
			v, err := l.ask(t.Context(), g, l.frozenKey("a", ""))
			if err != nil || !v.granted {
				t.Fatalf("got %+v, %v", v, err)
			}
			<-time.After(time.Second)
		}
		if d := waited(t, l, r); d != 0 {
			t.Fatalf("waited %s: a repeated call was charged again", d)
		}
	})
}

func TestCancelledWaiterLeavesNothingBehind(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", RequestsPerMinute: 1})
		acquire(t, l, Request{Account: "a"})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := l.Acquire(ctx, Request{Account: "a"})
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v, want context.Canceled", err)
		}
		if len(l.queues) != 0 {
			t.Fatalf("%d queues are left", len(l.queues))
		}
	})
}

func TestMetricsRegisterOnce(t *testing.T) {
	r := prometheus.NewRegistry()
	if _, err := New(Config{Metrics: r}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Metrics: r}); err == nil {
		t.Fatal("a second registration passed")
	}
}
