package kafka

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
)

// repeatAfter is how long a message is held back once it has been logged. A
// client says the same of every attempt to reach a broker that is down, many
// times a second.
const repeatAfter = 10 * time.Second

// logger passes on what the client has to say, one level down: what the client
// calls information is detail to whoever runs Millrace.
type logger struct {
	log zerolog.Logger

	mu   sync.Mutex
	seen map[string]*seen // by message: there are as many as places in the client
}

type seen struct {
	at     time.Time
	hidden int
}

func newLogger(log zerolog.Logger) *logger {
	return &logger{log: log, seen: make(map[string]*seen)}
}

func (l *logger) Level() kgo.LogLevel {
	switch l.log.GetLevel() {
	case zerolog.TraceLevel:
		return kgo.LogLevelDebug
	case zerolog.DebugLevel:
		return kgo.LogLevelInfo
	case zerolog.InfoLevel, zerolog.WarnLevel:
		return kgo.LogLevelWarn
	case zerolog.ErrorLevel:
		return kgo.LogLevelError
	case zerolog.FatalLevel, zerolog.PanicLevel, zerolog.NoLevel, zerolog.Disabled:
	}
	return kgo.LogLevelNone
}

func (l *logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := zerolog.TraceLevel
	switch level {
	case kgo.LogLevelError:
		to = zerolog.ErrorLevel
	case kgo.LogLevelWarn:
		to = zerolog.WarnLevel
	case kgo.LogLevelInfo:
		to = zerolog.DebugLevel
	case kgo.LogLevelDebug, kgo.LogLevelNone:
	}
	hidden, say := 0, true
	if to >= zerolog.WarnLevel {
		hidden, say = l.due(msg)
	}
	if !say {
		return
	}
	event := l.log.WithLevel(to).Fields(keyvals)
	if hidden > 0 {
		event = event.Int("repeated", hidden)
	}
	event.Msg("kafka: " + msg)
}

// due reports whether msg is to be logged now, and how often it was not since
// the last time.
func (l *logger) due(msg string) (hidden int, say bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.seen[msg]
	if s == nil {
		s = &seen{}
		l.seen[msg] = s
	}
	if !s.at.IsZero() && time.Since(s.at) < repeatAfter {
		s.hidden++
		return 0, false
	}
	hidden, s.hidden, s.at = s.hidden, 0, time.Now()
	return hidden, true
}
