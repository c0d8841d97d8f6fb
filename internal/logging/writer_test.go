package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sink is a writer that can be blocked and made to fail.
type sink struct {
	mu    sync.Mutex // held by a test to block the sink
	state sync.Mutex
	buf   bytes.Buffer
	short int // accept this many bytes of each write, then fail with err
	err   error
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Lock()
	defer s.state.Unlock()
	if s.err != nil {
		n := min(s.short, len(p))
		s.buf.Write(p[:n])
		return n, s.err
	}
	return s.buf.Write(p)
}

func (s *sink) fail(err error, short int) {
	s.state.Lock()
	defer s.state.Unlock()
	s.err, s.short = err, short
}

func (s *sink) lines() []string {
	s.state.Lock()
	defer s.state.Unlock()
	return strings.Split(strings.TrimSuffix(s.buf.String(), "\n"), "\n")
}

func newWriter(t *testing.T, cfg Config) *Writer {
	t.Helper()
	w, err := NewWriter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func line(n int) []byte { return fmt.Appendf(nil, "{\"n\":%d}\n", n) }

// split returns the numbers of the lines, and the sum of the notices.
func split(t *testing.T, lines []string) (numbers []int, dropped int) {
	t.Helper()
	for _, text := range lines {
		var one struct {
			N       *int
			Dropped int
			Message string
		}
		if err := json.Unmarshal([]byte(text), &one); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if one.N != nil {
			numbers = append(numbers, *one.N)
			continue
		}
		if want := fmt.Sprintf("%d log lines dropped", one.Dropped); one.Message != want {
			t.Errorf("notice says %q, want %q", one.Message, want)
		}
		dropped += one.Dropped
	}
	return numbers, dropped
}

func TestBlockedSinkStopsNoWriter(t *testing.T) {
	const writers, each, keep = 8, 5_000, 1_000
	registry := prometheus.NewRegistry()
	out := &sink{}
	w := newWriter(t, Config{Out: out, MaxLines: keep, Metrics: registry})

	out.mu.Lock()
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for n := range each {
				if _, err := w.Write(line(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait() // comes to its end only if no Write waits for the sink
	for n := range keep {
		if _, err := w.Write(line(each + n)); err != nil {
			t.Error(err)
		}
	}
	out.mu.Unlock()
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	numbers, told := split(t, out.lines())
	if total := writers*each + keep; len(numbers)+told != total {
		t.Errorf("%d lines written and %d said to be dropped, of %d", len(numbers), told, total)
	}
	if counted := droppedBy(w); counted != uint64(told) {
		t.Errorf("%d counted, %d said", counted, told)
	}
	if got := testutil.ToFloat64(w.dropped.WithLabelValues("full")); int(got) != told {
		t.Errorf("metric says %v, want %d", got, told)
	}
	for i, n := range numbers[len(numbers)-keep:] {
		if n != each+i {
			t.Fatalf("line %d of the last %d is %d, want %d", i, keep, n, each+i)
		}
	}
}

func TestOldestLinesMakeRoomOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		w := newWriter(t, Config{Out: &gate{release: release}, MaxBytes: 10 * len(line(0))})
		write(t, w, line(0))
		synctest.Wait() // 0 is at the sink, which blocks
		for n := range 10 {
			write(t, w, line(n))
		}
		for want := range uint64(20) {
			if got := droppedBy(w); got != want {
				t.Fatalf("%d dropped, want %d", got, want)
			}
			write(t, w, line(9))
		}
		close(release)
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLinesKeepTheirOrderAndTheNoticeStandsInTheGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		out := &gate{release: release}
		w := newWriter(t, Config{Out: out, MaxLines: 3})
		write(t, w, line(0))
		synctest.Wait() // 0 is at the sink, which blocks
		for n := 1; n <= 8; n++ {
			write(t, w, line(n))
		}
		close(release)
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(out.String(), "\n")
		numbers, told := split(t, lines[:len(lines)-1])
		if fmt.Sprint(numbers) != "[0 6 7 8]" || told != 5 || !strings.Contains(lines[1], "5 log lines dropped") {
			t.Errorf("got:\n%s", out.String())
		}
	})
}

// gate blocks in a way that synctest sees.
type gate struct {
	release chan struct{}
	bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.release
	return g.Buffer.Write(p)
}

func TestCloseGivesUpAtItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		w := newWriter(t, Config{Out: &gate{release: release}})
		write(t, w, line(0))
		synctest.Wait()
		write(t, w, line(1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := w.Close(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 lines not written") {
			t.Errorf("got %v", err)
		}
		if droppedBy(w) != 2 {
			t.Errorf("%d dropped, want 2", droppedBy(w))
		}
		close(release)
		<-w.done
	})
}

func TestLinesAfterCloseAreCounted(t *testing.T) {
	out := &sink{}
	w := newWriter(t, Config{Out: out})
	write(t, w, line(0))
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, w, line(1))
	if droppedBy(w) != 1 || len(out.lines()) != 1 {
		t.Errorf("%d dropped, sink has %q", droppedBy(w), out.lines())
	}
	if err := w.Close(t.Context()); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestFailingSinkIsSurvivedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &sink{}
		w := newWriter(t, Config{Out: out})
		out.fail(io.ErrClosedPipe, 0)
		write(t, w, line(0))
		synctest.Wait()
		write(t, w, line(1))
		synctest.Wait()
		out.fail(nil, 0)
		write(t, w, line(2))
		if err := w.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		numbers, told := split(t, out.lines())
		if fmt.Sprint(numbers) != "[2]" || told != 2 || droppedBy(w) != 2 {
			t.Errorf("sink has %q, %d counted", out.lines(), droppedBy(w))
		}
	})
}

func TestOnlyLinesCutShortCountAsLost(t *testing.T) {
	batch := []byte("notice\none\ntwo\nthree\n")
	for n, want := range map[int]int{0: 3, 7: 3, 10: 3, 11: 2, 14: 2, 15: 1, 20: 1, 21: 0} {
		if got := linesAfter(batch, len("notice\n"), n); got != want {
			t.Errorf("%d bytes written: %d lines lost, want %d", n, got, want)
		}
	}
}

func TestCloseReportsASinkThatStillFails(t *testing.T) {
	out := &sink{}
	out.fail(io.ErrClosedPipe, 0)
	w := newWriter(t, Config{Out: out})
	write(t, w, line(0))
	if err := w.Close(t.Context()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
	if droppedBy(w) != 1 {
		t.Errorf("%d dropped, want 1", droppedBy(w))
	}
}

func TestLineLargerThanTheBufferIsDropped(t *testing.T) {
	out := &sink{}
	w := newWriter(t, Config{Out: out, MaxBytes: 16})
	write(t, w, []byte(strings.Repeat("x", 17)+"\n"))
	write(t, w, line(1))
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if numbers, told := split(t, out.lines()); len(numbers) != 1 || told != 1 {
		t.Errorf("got %q", out.lines())
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{{}, {Out: io.Discard, MaxBytes: -1}, {Out: io.Discard, Level: "loud"}, {Out: io.Discard, Format: "xml"}} {
		if _, _, err := New(cfg); err == nil {
			t.Errorf("%+v: want an error", cfg)
		}
	}
}

func TestConsoleFormatIsForPeople(t *testing.T) {
	out := &sink{}
	log, w, err := New(Config{Out: out, Format: Console})
	if err != nil {
		t.Fatal(err)
	}
	log.Info().Str("topic", "results").Msg("created")
	log.Debug().Msg("too little")
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lines := out.lines(); len(lines) != 1 || !strings.HasSuffix(lines[0], "INF created topic=results") {
		t.Errorf("got %q", lines)
	}
}

// The ring behaves as a queue of lines that loses its head when full.
func TestRingMatchesAQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		maxBytes := rapid.IntRange(1, 64).Draw(t, "bytes")
		maxLines := rapid.IntRange(1, 8).Draw(t, "lines")
		r := newRing(maxBytes, maxLines)
		var model []string
		used := 0
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "push") {
				text := rapid.StringOfN(rapid.RuneFrom([]rune("abc")), 1, maxBytes, maxBytes).Draw(t, "text")
				dropped := 0
				for len(model) == maxLines || used+len(text) > maxBytes {
					used -= len(model[0])
					model = model[1:]
					dropped++
				}
				model, used = append(model, text), used+len(text)
				if got := r.push([]byte(text)); got != dropped {
					t.Fatalf("push dropped %d, want %d", got, dropped)
				}
				continue
			}
			limit := rapid.IntRange(1, maxBytes).Draw(t, "limit")
			var want string
			lines := 0
			for len(model) > 0 && (lines == 0 || len(want)+len(model[0]) <= limit) {
				want, used = want+model[0], used-len(model[0])
				model = model[1:]
				lines++
			}
			if got, n := r.pop(nil, limit); string(got) != want || n != lines {
				t.Fatalf("pop: %q (%d lines), want %q (%d)", got, n, want, lines)
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	w, err := NewWriter(Config{Out: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	text := []byte(strings.Repeat("x", 199) + "\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.Write(text); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func write(t *testing.T, w *Writer, p []byte) {
	t.Helper()
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
}

// droppedBy returns how many lines did not reach the sink so far.
func droppedBy(w *Writer) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}
