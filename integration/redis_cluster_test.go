//go:build integration

package integration

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
	"millrace/internal/testenv"
	"millrace/ratelimit"
)

// Redis as a cluster of three masters. What Millrace does with Redis is done on
// one that consists of several: no script and no transaction may touch keys of two
// servers, and slots move while the work goes on.
func TestRedisCluster(t *testing.T) {
	cluster := testenv.StartRedisCluster(t)
	s := services{redis: cluster.URL, redisMode: "cluster"}
	t.Run("slots move and a worker is killed under the load of two pools", func(t *testing.T) { clusterUnderLoad(t, cluster, s) })
	t.Run("busy policies", func(t *testing.T) { busyPolicies(t, s) })
	t.Run("cancels", func(t *testing.T) { tasksAreCancelled(t, s) })
	t.Run("limits", func(t *testing.T) { limitsHold(t, cluster.URL) })
	t.Run("one server is out", func(t *testing.T) { serverOfClusterIsOut(t, cluster, s) })
}

// clusterClient is the checker's own.
func clusterClient(t *testing.T, url string) *redis.ClusterClient {
	t.Helper()
	options, err := redis.ParseClusterURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClusterClient(options)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func clusterUnderLoad(t *testing.T, cluster *testenv.RedisCluster, s services) {
	echo := newWatchfulEcho(t)
	p := newPipeline(t, s, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+echo.url, "MILLRACE_SLOTS=16")
	pools := p.startPools()
	p.startIngest()
	const conversations, turns = 80, 9
	running := p.send(load{conversations: conversations, turns: turns, rate: 200})

	// The slots of conversations, of announcements, of whatever else has keys.
	keys := strings.TrimSuffix(p.prefix, ".") + ":"
	var first []string
	for c := range conversations {
		first = append(first, fmt.Sprintf("%shot:{conversation-%04d}", keys, c))
	}
	for n := range partitions {
		first = append(first, keys+"bulk:running:{"+strconv.Itoa(n)+"}")
	}
	for from := range 2 {
		p.awaitCompletions(conversations * turns / 6 * (from + 1))
		slots, err := cluster.SlotsWithKeys(t.Context(), from, 60, first...)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := cluster.Move(t.Context(), slots, from, 2, 500*time.Millisecond); err != nil {
			t.Fatalf("move slots: %v", err)
		}
		t.Logf("%d slots moved from server %d to server 2 in %s", len(slots), from, time.Since(began).Round(time.Millisecond))
	}
	p.awaitCompletions(conversations * turns / 2)
	pools["bulk"][0].kill()
	pools["bulk"][0] = p.start("worker", "MILLRACE_POOL=bulk", "MILLRACE_PRIORITIES=normal,batch")

	e := p.check(t, running.wait())
	most, calls := echo.seen()
	t.Logf("%d turns of one conversation ran at once at most, %d calls for %d tasks", most, calls, len(e.completions))
	if most != 1 {
		t.Errorf("%d turns of one conversation ran at once", most)
	}
	client := clusterClient(t, s.redis)
	eventually(t, 10*time.Second, "every hot copy is as new as its conversation", func() error {
		for id, want := range e.conversations {
			got, err := client.HGet(t.Context(), keys+"hot:{"+id+"}", "v").Int64()
			if err != nil {
				return fmt.Errorf("%s: %w", id, err)
			}
			if got != want.version {
				return fmt.Errorf("%s is at version %d, want %d", id, got, want.version)
			}
		}
		return nil
	})
	for name, workers := range pools {
		for _, w := range workers {
			t.Logf("%s: %v second runs, %v hot copies not written, %v leases lost", name, w.metric(t, "millrace_consumer_second_runs_total"),
				w.metric(t, "millrace_statestore_hot_write_failures_total"), w.metric(t, "millrace_consumer_leases_lost_total"))
			if strings.Contains(string(w.output()), "CROSSSLOT") {
				t.Errorf("a worker of %s touches keys of several slots in one command", name)
			}
		}
	}
}

// limitsHold asks for more than accounts allow, from several limiters at once. The
// accounts lie on different servers.
func limitsHold(t *testing.T, url string) {
	const most = 4
	accounts := []string{"a", "b", "c", "d", "e", "f"}
	var limits ratelimit.Limits
	for _, account := range accounts {
		limits = append(limits, ratelimit.Limit{Account: account, Concurrency: most, RequestsPerMinute: 100_000, InputTokensPerMinute: 1_000_000})
	}
	client := clusterClient(t, url)
	var wg sync.WaitGroup
	held, peak := make([]atomic.Int64, len(accounts)), make([]atomic.Int64, len(accounts))
	for range 3 {
		limiter, err := ratelimit.New(ratelimit.Config{Redis: client, Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		for i, account := range accounts {
			if err := limiter.StartUnspent(t.Context(), account); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				wg.Go(func() {
					g, err := limiter.Acquire(t.Context(), ratelimit.Request{Account: account, Model: "m", Priority: millrace.Normal, InputTokens: 10})
					if err != nil {
						t.Error(err)
						return
					}
					n := held[i].Add(1)
					for was := peak[i].Load(); n > was && !peak[i].CompareAndSwap(was, n); was = peak[i].Load() {
					}
					pass(t, 10*time.Millisecond)
					held[i].Add(-1)
					if err := g.Settle(context.WithoutCancel(t.Context()), ratelimit.Usage{InputTokens: 12}); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	wg.Wait()
	for i, account := range accounts {
		if n := peak[i].Load(); n != most {
			t.Errorf("account %s: %d requests at once, want %d", account, n, most)
		}
	}
}

// A third of the conversations cannot be opened: workers say so, and go on by
// themselves. The process stands still, as on a machine that hangs.
func serverOfClusterIsOut(t *testing.T, cluster *testenv.RedisCluster, s services) {
	p := newPipeline(t, s, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	worker := p.startWorkers(1)[0]
	p.startIngest()
	const conversations, turns = 60, 4
	running := p.send(load{conversations: conversations, turns: turns, rate: 100})
	p.awaitCompletions(conversations)
	if err := cluster.StopNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	worker.says(`"dependency":"redis".*"message":"a dependency is out"`, 20*time.Second)
	eventually(t, 20*time.Second, "the worker is not ready", func() error { return get(worker.url()+"/readyz", http.StatusServiceUnavailable, nil) })
	t.Logf("the worker was not ready %s after a server stood still", time.Since(began).Round(time.Millisecond))
	if err := cluster.ContinueNode(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	e := p.check(t, running.wait())
	t.Logf("all done %s after it went on", time.Since(back).Round(time.Millisecond))
	e.mustHaveRunOnce(t)
	worker.awaitReadyz()
}
