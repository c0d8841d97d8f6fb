package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// interrupt sends the signal once, to this process: a command that runs in it
// has asked for signals by the time that it talks to a server.
func interrupt(t *testing.T, s syscall.Signal) func() {
	t.Helper()
	return sync.OnceFunc(func() {
		if err := syscall.Kill(syscall.Getpid(), s); err != nil {
			t.Error(err)
		}
	})
}

func TestInterruptedCommandSaysSo(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run("submit "+s.String(), func(t *testing.T) {
			stop := interrupt(t, s)
			api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				stop()
				_, _ = io.Copy(io.Discard, r.Body) // else the server does not see the client go
				<-r.Context().Done()
			}))
			defer api.Close()
			got := call(t, []string{"MILLRACE_URL=" + api.URL}, "", "submit", "--payload", "{}")
			if want := "millrace: API at " + api.URL + " (MILLRACE_URL): interrupted\n"; got.code != 130 || got.err != want {
				t.Errorf("code %d, error %q, want %q", got.code, got.err, want)
			}
		})
		t.Run("submit batch "+s.String(), func(t *testing.T) {
			stop := interrupt(t, s)
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusTooManyRequests)
				stop()
			}))
			defer api.Close()
			got := call(t, []string{"MILLRACE_URL=" + api.URL}, "{}\n{}\n", "submit", "--batch", "-")
			if got.code != 130 || !strings.Contains(got.err, "interrupted") {
				t.Errorf("code %d, error %q", got.code, got.err)
			}
		})
		t.Run("migrate "+s.String(), func(t *testing.T) {
			got := call(t, []string{"MILLRACE_POSTGRES_URL=postgres://u@" + silent(t, interrupt(t, s)) + "/db?sslmode=disable"}, "", "migrate")
			if got.code != 130 || !strings.HasSuffix(got.err, "millrace: interrupted\n") {
				t.Errorf("code %d, error %q", got.code, got.err)
			}
		})
	}
}

// silent returns the address of a server that takes connections, calls whenAsked
// and never says anything.
func silent(t *testing.T, whenAsked func()) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, conn)
			whenAsked()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, conn := range open {
			_ = conn.Close()
		}
	})
	return l.Addr().String()
}

func TestServerThatIsStoppedHasNotFailed(t *testing.T) {
	var out, errs bytes.Buffer
	log := &startWatcher{out: &errs, when: "simulator listens", do: interrupt(t, syscall.SIGTERM)}
	code := run(&cli{in: strings.NewReader(""), out: &out, err: log, environ: []string{"MILLRACE_HTTP_ADDR=127.0.0.1:0"}}, []string{"llmsim"})
	if code != 0 || strings.Contains(errs.String(), "interrupted") {
		t.Errorf("code %d, said %s", code, errs.String())
	}
}

// startWatcher does something once a log line says what it waits for.
type startWatcher struct {
	out  *bytes.Buffer
	when string
	do   func()
}

func (w *startWatcher) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.when)) {
		w.do()
	}
	return w.out.Write(p)
}

func TestOnlyWhatFollowsFromASignalIsAnInterruption(t *testing.T) {
	killed := exec.CommandContext(t.Context(), "sleep", "60")
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	if err := killed.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	killedErr := killed.Wait()
	stopped, stop := context.WithCancelCause(t.Context())
	stop(interruption{})
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	for _, test := range []struct {
		what   string
		ctx    context.Context
		serves bool
		err    error
		said   string // empty: no interruption
	}{
		{"canceled", stopped, false, fmt.Errorf("demo: %w", context.Canceled), "millrace: interrupted\n"},
		{"in its own words", stopped, false, fmt.Errorf("3 lines were not sent: %w", context.Cause(stopped)), "millrace: 3 lines were not sent: interrupted\n"},
		{"program killed along", stopped, false, fmt.Errorf("initdb: %w", killedErr), "millrace: interrupted\n"},
		{"another error", stopped, false, errors.New("disk full"), ""},
		{"server", stopped, true, context.Canceled, ""},
		{"no signal", t.Context(), false, context.Canceled, ""},
		{"timeout", late, false, late.Err(), ""},
	} {
		var said bytes.Buffer
		c := &cli{err: &said, serves: test.serves}
		if got := c.interrupted(test.ctx, test.err); got != (test.said != "") || said.String() != test.said {
			t.Errorf("%s: %v, said %q", test.what, got, said.String())
		}
	}
}
