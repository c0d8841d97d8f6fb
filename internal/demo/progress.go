package demo

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// snapshot is how far a run has come.
type snapshot struct {
	sent, done, total int64
	sending           bool
	// lag is what the workers have yet to commit, negative when it is not known.
	lag int64
}

// progress shows a run while it goes on: one line that is written over on a
// terminal, a line every few seconds elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	fd       int
	every    time.Duration
	look     func(ctx context.Context) snapshot

	began time.Time
	past  []sample
}

type sample struct {
	at   time.Time
	done int64
}

// rateWindow is how far back the shown rate looks.
const rateWindow = 10 * time.Second

func newProgress(out io.Writer, look func(context.Context) snapshot) *progress {
	p := &progress{out: out, every: 5 * time.Second, look: look, began: time.Now()}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal, p.fd, p.every = true, int(f.Fd()), 250*time.Millisecond
	}
	return p
}

// run shows until ctx ends, and once more then.
func (p *progress) run(ctx context.Context) {
	ticker := time.NewTicker(p.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			p.show(p.look(context.WithoutCancel(ctx)), time.Now())
			if p.terminal {
				_, _ = fmt.Fprintln(p.out)
			}
			return
		case now := <-ticker.C:
			p.show(p.look(ctx), now)
		}
	}
}

func (p *progress) show(s snapshot, now time.Time) {
	line := p.line(s, now)
	if p.terminal {
		// A line that wraps could not be written over.
		if width, _, err := term.GetSize(p.fd); err == nil && width > 1 && len(line) >= width {
			line = line[:width-1]
		}
		_, _ = fmt.Fprint(p.out, "\r\x1b[K"+line)
		return
	}
	_, _ = fmt.Fprintln(p.out, line)
}

func (p *progress) line(s snapshot, now time.Time) string {
	p.past = append(p.past, sample{at: now, done: s.done})
	for len(p.past) > 2 && now.Sub(p.past[0].at) > rateWindow {
		p.past = p.past[1:]
	}
	from := sample{at: p.began}
	if len(p.past) > 1 {
		from = p.past[0]
	}
	rate := 0.0
	if span := now.Sub(from.at).Seconds(); span > 0 {
		rate = float64(s.done-from.done) / span
	}
	of, left := "", "?"
	if s.total > 0 {
		of = fmt.Sprintf("/%d", s.total)
	}
	if all := s.total; all > 0 || !s.sending {
		if !s.sending {
			all = s.sent
		}
		switch {
		case s.done >= all:
			left = "0s"
		case rate > 0:
			left = time.Duration(float64(all-s.done) / rate * float64(time.Second)).Round(time.Second).String()
		}
	}
	lag := "?"
	if s.lag >= 0 {
		lag = fmt.Sprint(s.lag)
	}
	return fmt.Sprintf("%s  sent %d%s  done %d  %.0f/s  in flight %d  lag %s  left %s",
		now.Sub(p.began).Round(time.Second), s.sent, of, s.done, rate, max(s.sent-s.done, 0), lag, left)
}
