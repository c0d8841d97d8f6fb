package logging

import (
	"bytes"
	"fmt"
	"io"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// The formats of log lines.
const (
	JSON    = "json"
	Console = "console"
)

// Config says how to log.
type Config struct {
	// Out is the sink, written to by one goroutine at a time. Required.
	Out io.Writer
	// Level is the least level that is logged, in zerolog's words. Default info.
	Level string
	// Format is JSON or Console. Default JSON.
	Format string
	// Color colours Console lines.
	Color bool
	// MaxBytes and MaxLines bound what waits for the sink. Default 4 MiB and
	// 65,536 lines.
	MaxBytes int
	MaxLines int
	// Metrics takes the counter of dropped lines. Nil: none.
	Metrics prometheus.Registerer
}

// New returns a logger, and the writer below it, which the caller closes last
// of all. Logger.Fatal and os.Exit lose what the writer still holds: return
// errors up to main instead.
func New(cfg Config) (zerolog.Logger, *Writer, error) {
	// With a unit, which a bare number lacks. The format is global to the library.
	zerolog.DurationFieldFormat = zerolog.DurationFormatString
	level := zerolog.InfoLevel
	if cfg.Level != "" {
		var err error
		if level, err = zerolog.ParseLevel(cfg.Level); err != nil {
			return zerolog.Nop(), nil, fmt.Errorf("log level: %w", err)
		}
	}
	switch cfg.Format {
	case "", JSON:
	case Console:
		cfg.Out = lineWriter{zerolog.ConsoleWriter{Out: cfg.Out, NoColor: !cfg.Color, TimeFormat: "15:04:05.000"}}
	default:
		return zerolog.Nop(), nil, fmt.Errorf("log format %q: want %s or %s", cfg.Format, JSON, Console)
	}
	w, err := NewWriter(cfg)
	if err != nil {
		return zerolog.Nop(), nil, err
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger(), w, nil
}

// lineWriter hands lines on one at a time, to a writer that decodes each.
type lineWriter struct{ out io.Writer }

func (w lineWriter) Write(p []byte) (int, error) {
	done := 0
	for line := range bytes.Lines(p) {
		if _, err := w.out.Write(line); err != nil {
			return done, err
		}
		done += len(line)
	}
	return done, nil
}
