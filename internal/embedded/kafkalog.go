package embedded

import (
	"fmt"
	"strings"
	"sync"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
)

// kafkaLog passes the broker's lines on and watches them for writes that
// failed. The broker reports those nowhere else: it answers the end of a
// transaction with success even when a commit marker did not reach the disk.
type kafkaLog struct {
	logger zerolog.Logger
	failed chan struct{}

	mu    sync.Mutex
	cause error
}

// Logf implements kfake.Logger.
func (l *kafkaLog) Logf(level kfake.LogLevel, format string, args ...any) {
	// Format only what is looked at: the broker logs every request at info.
	switch level {
	case kfake.LogLevelError, kfake.LogLevelWarn:
		line := fmt.Sprintf(format, args...)
		// The first write that is lost ends the services, and is told then; every
		// further one follows from it.
		if lostWrite(format) {
			l.logger.Debug().Msg(line)
			l.fail(line, args)
		} else if level == kfake.LogLevelError {
			l.logger.Error().Msg(line)
		} else {
			l.logger.Debug().Msg(line)
		}
	case kfake.LogLevelNone, kfake.LogLevelInfo, kfake.LogLevelDebug:
	}
}

// lostWrite reports whether a line of this format says that state did not reach
// the disk.
func lostWrite(format string) bool {
	return strings.HasPrefix(format, "persist ") || strings.HasPrefix(format, "save session state") ||
		strings.HasPrefix(format, "endTx: failed to persist")
}

func (l *kafkaLog) fail(line string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return
	}
	lost := &lostWriteError{line: line}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			lost.err = err
		}
	}
	l.cause = lost
	close(l.failed)
}

// lostWriteError is a line of the broker and the error that is in it.
type lostWriteError struct {
	line string
	err  error
}

func (e *lostWriteError) Error() string { return "kafka: the broker could not write: " + e.line }

// Unwrap returns the failed write, if the line held one.
func (e *lostWriteError) Unwrap() error { return e.err }

func (l *kafkaLog) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}
