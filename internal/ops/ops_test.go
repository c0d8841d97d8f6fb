package ops

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func mux(h *Health) *http.ServeMux {
	m := http.NewServeMux()
	h.Handle(m)
	return m
}

func TestUnreadyIsNotDead(t *testing.T) {
	h := NewHealth(0)
	h.Ready("kafka", func(context.Context) error { return errors.New("no broker answers") })
	h.Ready("redis", func(context.Context) error { return nil })
	m := mux(h)
	if w := get(m, "/livez"); w.Code != http.StatusOK || w.Body.String() != "ok\n" {
		t.Errorf("livez: %d %q", w.Code, w.Body)
	}
	if w := get(m, "/readyz"); w.Code != http.StatusServiceUnavailable || w.Body.String() != "kafka: no broker answers\n" {
		t.Errorf("readyz: %d %q", w.Code, w.Body)
	}
	if w := httptest.NewRecorder(); true {
		m.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/livez", nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST: %d", w.Code)
		}
	}
}

func TestVerboseListsEveryCheck(t *testing.T) {
	h := NewHealth(0)
	h.Ready("redis", func(context.Context) error { return nil })
	h.Ready("kafka", func(context.Context) error { return errors.New("gone") })
	w := get(mux(h), "/readyz?verbose")
	var got struct {
		OK     bool
		Checks []result
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusServiceUnavailable || got.OK || len(got.Checks) != 2 {
		t.Fatalf("got %d %+v", w.Code, got)
	}
	if first, second := got.Checks[0], got.Checks[1]; first.Name != "kafka" || first.Error != "gone" || second.Name != "redis" || !second.OK {
		t.Errorf("got %+v", got.Checks)
	}
}

func TestChecksRunSideBySideWithinTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHealth(time.Second)
		for _, name := range []string{"a", "b", "c"} {
			h.Ready(name, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}
		start := time.Now()
		if err := failed(h.ready.run(t.Context())); err == nil || strings.Count(err.Error(), "\n") != 2 {
			t.Errorf("want three failures, got %v", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %s, want 1s", took)
		}
	})
}

func TestResultsAreReusedForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ran atomic.Int32
		h := NewHealth(0)
		h.Ready("kafka", func(context.Context) error { ran.Add(1); return nil })
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				if err := failed(h.ready.run(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if ran.Load() != 1 {
			t.Errorf("ran %d times for ten callers at once", ran.Load())
		}
		<-time.After(time.Second)
		if err := failed(h.ready.run(t.Context())); err != nil || ran.Load() != 2 {
			t.Errorf("after a second: ran %d times, %v", ran.Load(), err)
		}
	})
}

func TestHungCheckFailsAndIsNotStartedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var ran atomic.Int32
		h := NewHealth(time.Second)
		h.Live("loop", func(context.Context) error { ran.Add(1); <-release; return nil })
		if err := failed(h.live.run(t.Context())); err == nil || !strings.Contains(err.Error(), "no answer in time") {
			t.Errorf("got %v", err)
		}
		<-time.After(time.Second)
		if err := failed(h.live.run(t.Context())); err == nil || ran.Load() != 1 {
			t.Errorf("got %v after %d runs", err, ran.Load())
		}
		close(release)
		<-time.After(time.Second)
		if err := failed(h.live.run(t.Context())); err != nil {
			t.Errorf("after it recovered: %v", err)
		}
	})
}

func TestCallerThatHangsUpDoesNotFailTheCheck(t *testing.T) {
	h := NewHealth(0)
	h.Ready("kafka", func(ctx context.Context) error { return ctx.Err() })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := failed(h.ready.run(ctx)); err != nil {
		t.Error(err)
	}
}

func TestMetricsNameTheBuildAndTheProcess(t *testing.T) {
	registry := NewRegistry("v1.2.3")
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "millrace_test_total"}, func() float64 { return 7 }))
	m := http.NewServeMux()
	HandleMetrics(m, registry)
	body := get(m, "/metrics").Body.String()
	for _, want := range []string{`millrace_build_info{version="v1.2.3"} 1`, "millrace_test_total 7", "go_goroutines", "process_start_time_seconds"} {
		if !strings.Contains(body, want) {
			t.Errorf("want %q in the metrics", want)
		}
	}
}

func TestTakenPortIsAPlainError(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0", "MILLRACE_HTTP_ADDR")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen(t.Context(), l.Addr().String(), "MILLRACE_HTTP_ADDR")
	if want := "address " + l.Addr().String() + " is in use: set MILLRACE_HTTP_ADDR or stop the other process"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := Listen(t.Context(), "192.0.2.1:0", "MILLRACE_HTTP_ADDR"); err == nil || !strings.Contains(err.Error(), "not one of this machine") {
		t.Errorf("foreign address: %v", err)
	}
}

func TestStopLetsRequestsFinish(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		if r.Context().Err() != nil {
			t.Error("the request was cancelled by the stop")
		}
		_, _ = io.WriteString(w, "done")
	})}
	stop, served, url := serve(t, s)
	answer := make(chan string, 1)
	go func() {
		defer close(answer)
		response, err := fetch(t, url)
		if err != nil {
			t.Error(err)
			return
		}
		answer <- response
	}()
	<-entered
	stop()
	close(release)
	if got := <-answer; got != "done" {
		t.Errorf("got %q", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestRequestsThatOutliveTheDrainAreCutOff(t *testing.T) {
	entered := make(chan struct{})
	s := &Server{DrainTimeout: time.Millisecond, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})}
	stop, served, url := serve(t, s)
	failed := make(chan error, 1)
	go func() {
		_, err := fetch(t, url)
		failed <- err
	}()
	<-entered
	stop()
	if err := <-served; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("want the request to fail")
	}
}

func TestServerWithoutHandlerClosesItsListener(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0", "X")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Server{}).Serve(t.Context(), l); err == nil {
		t.Error("want an error")
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listener: %v", err)
	}
}

func serve(t *testing.T, s *Server) (stop context.CancelFunc, served chan error, url string) {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0", "X")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served = make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	return stop, served, "http://" + l.Addr().String()
}

func fetch(t *testing.T, url string) (string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}
