package ratelimit

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"millrace"
)

func TestWaitersAreServedByPriorityThenArrival(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", RequestsPerMinute: 60, Burst: 1})
		acquire(t, l, Request{Account: "a"})
		served := make(chan int, 16)
		wait := func(n int, p millrace.Priority) {
			go func() {
				if _, err := l.Acquire(t.Context(), Request{Account: "a", Priority: p}); err != nil {
					t.Error(err)
				}
				served <- n
			}()
			synctest.Wait()
		}
		wait(5, millrace.Batch)
		wait(6, millrace.Batch)
		wait(3, millrace.Normal)
		wait(1, millrace.High)
		wait(7, "unheard-of")
		wait(2, millrace.High)
		wait(4, millrace.Normal)
		var got []int
		for range 7 {
			got = append(got, <-served)
		}
		if !slices.IsSorted(got) {
			t.Fatalf("served in order %v", got)
		}
	})
}

func TestLargeRequestIsNotStarvedBySmallOnes(t *testing.T) {
	bubble(t, func(t *testing.T, _ *miniredis.Miniredis, client redis.UniversalClient) {
		l := newLimiter(t, client, Limit{Account: "a", TokensPerMinute: 100, Burst: Minute})
		acquire(t, l, Request{Account: "a", InputTokens: 60})
		order := make(chan string, 2)
		for _, r := range []struct {
			name   string
			tokens int64
		}{{"large", 90}, {"small", 10}} {
			go func() {
				if _, err := l.Acquire(t.Context(), Request{Account: "a", InputTokens: r.tokens}); err != nil {
					t.Error(err)
				}
				order <- r.name
			}()
			synctest.Wait()
		}
		if first := <-order; first != "large" {
			t.Fatalf("%s was served first", first)
		}
		<-order
	})
}

func TestUnrefusedRequestsAskSideBySide(t *testing.T) {
	q := &queue{}
	var ws []*waiter
	for range maxAsking + 1 {
		ws = append(ws, q.arrive(0))
	}
	for i, w := range ws[:maxAsking] {
		if q.next() != w {
			t.Fatalf("waiter %d may not ask", i)
		}
		w.asking = true
	}
	if q.next() != nil {
		t.Fatal("more than the bound may ask at once")
	}
	ws[1].asking = false
	if q.next() != ws[1] {
		t.Fatal("the freed place is not taken")
	}
	q.refused++
	if q.next() != nil {
		t.Fatal("another one asks while the head does, after a refusal")
	}
}
