package logging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

const (
	defaultMaxBytes = 4 << 20
	defaultMaxLines = 1 << 16
	// batchBytes is what goes to the sink in one write, as long as lines are short.
	batchBytes = 64 << 10
)

// Writer passes lines on to a sink. Write never waits for the sink. At most
// the configured bytes and lines wait, besides the batch that is being written.
type Writer struct {
	out     io.Writer
	dropped *prometheus.CounterVec
	done    chan struct{}

	mu       sync.Mutex
	arrived  sync.Cond // a line or the end
	lines    ring
	lost     uint64 // in all
	untold   uint64 // of them, not yet said in the log
	closed   bool
	gaveUp   bool // Close ran out of time
	writing  int  // lines in the batch at the sink
	sinkFail error
}

// NewWriter starts a writer; of cfg it reads Out, the bounds and Metrics. Its
// goroutine ends with Close.
func NewWriter(cfg Config) (*Writer, error) {
	if cfg.Out == nil {
		return nil, errors.New("log writer: Out is missing")
	}
	if cfg.MaxBytes < 0 || cfg.MaxLines < 0 {
		return nil, fmt.Errorf("log writer: bounds of %d bytes and %d lines: want positive numbers, or 0 for the default", cfg.MaxBytes, cfg.MaxLines)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultMaxBytes
	}
	if cfg.MaxLines == 0 {
		cfg.MaxLines = defaultMaxLines
	}
	w := &Writer{
		out:   cfg.Out,
		lines: newRing(cfg.MaxBytes, cfg.MaxLines),
		done:  make(chan struct{}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_log_lines_dropped_total",
			Help: "Log lines that did not reach the sink: the buffer was full, the sink failed, or the process ended first.",
		}, []string{"reason"}),
	}
	w.arrived.L = &w.mu
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(w.dropped); err != nil {
			return nil, fmt.Errorf("log writer: register metrics: %w", err)
		}
	}
	go w.run()
	return w, nil
}

// Write takes one line, or drops it. It never fails and never waits for the
// sink.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.closed:
		w.drop(1, "closed")
	case len(line) > len(w.lines.buf):
		w.drop(1, "full")
	default:
		w.drop(w.lines.push(line), "full")
		w.arrived.Signal()
	}
	return len(line), nil
}

// Close flushes what waits and ends the writer; lines that come later are
// dropped. When ctx ends first, the error says how many lines are lost. The
// sink is then still in its last write, which nothing can interrupt.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	w.arrived.Signal()
	w.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if left := w.lines.lines + w.writing; left > 0 && !w.gaveUp {
		w.gaveUp = true
		w.drop(left, "closed")
		return fmt.Errorf("flush log: %d lines not written: %w", left, context.Cause(ctx))
	}
	if w.sinkFail != nil {
		return fmt.Errorf("flush log: %w", w.sinkFail)
	}
	return nil
}

func (w *Writer) drop(lines int, reason string) {
	if lines == 0 {
		return
	}
	w.lost += uint64(lines)   //nolint:gosec // counts of lines are not negative
	w.untold += uint64(lines) //nolint:gosec // as above
	w.dropped.WithLabelValues(reason).Add(float64(lines))
}

// run feeds the sink until the writer is closed and empty.
func (w *Writer) run() {
	defer close(w.done)
	batch := make([]byte, 0, batchBytes)
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		// A notice alone does not wake the sink: one that fails would be told so for
		// ever.
		for w.lines.lines == 0 && !w.closed {
			w.arrived.Wait()
		}
		if w.gaveUp || w.lines.lines == 0 && w.untold == 0 {
			return
		}
		last := w.closed && w.lines.lines == 0
		// The oldest lines are dropped, so the gap is right before what waits.
		told := w.untold
		batch = appendNotice(batch[:0], told)
		w.untold = 0
		head := len(batch)
		batch, w.writing = w.lines.pop(batch, batchBytes)

		w.mu.Unlock()
		n, err := w.out.Write(batch)
		w.mu.Lock()

		if err == nil && n < len(batch) {
			err = io.ErrShortWrite
		}
		w.sinkFail = err
		if err != nil && !w.gaveUp {
			if n < head {
				w.untold += told
			}
			w.drop(linesAfter(batch, head, n), "sink")
		}
		w.writing = 0
		if last {
			return
		}
	}
}

// appendNotice adds the line that says how many were dropped, if any were.
func appendNotice(dst []byte, dropped uint64) []byte {
	if dropped == 0 {
		return dst
	}
	buf := bytes.NewBuffer(dst)
	log := zerolog.New(buf)
	log.Warn().Timestamp().Uint64("dropped", dropped).Msgf("%d log lines dropped", dropped)
	return buf.Bytes()
}

// linesAfter returns how many of the lines that start at head were not written
// in full when n bytes were.
func linesAfter(batch []byte, head, n int) int {
	missing, end := 0, head
	for line := range bytes.Lines(batch[head:]) {
		if end += len(line); end > n {
			missing++
		}
	}
	return missing
}
