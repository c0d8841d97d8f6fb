package ingest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"millrace"
)

// Config is what a [Server] is made of. The zero value of every field but
// Producer is a working default.
type Config struct {
	// Producer writes the records. It should be a client made with
	// [ProducerOptions]; the server does not close it. Required.
	Producer Producer
	// TopicPrefix precedes every topic name. Default: "millrace.".
	TopicPrefix string
	// Priorities are the priorities that exist, highest first. Default:
	// [millrace.DefaultPriorities].
	Priorities []millrace.Priority
	// DefaultPriority is what a task gets that wishes for none and matches no
	// rule. Default: "normal" if there is one, otherwise the lowest.
	DefaultPriority millrace.Priority
	// Classifier decides a task's priority. Nil: every task gets what it wishes
	// for. If it is a [prometheus.Collector], it is registered with Metrics.
	Classifier Classifier
	// Source is the CloudEvents source of the records: a URI reference. Default:
	// "urn:millrace:ingest".
	Source string

	// Reader answers questions about tasks, conversations and dead letters. Nil:
	// those routes answer 503 and say that no store is configured.
	Reader Reader
	// ReaderSetting names the setting that is missing when Reader, Canceller or
	// Scheduler is nil, for that answer. Default: "MILLRACE_POSTGRES_URL".
	ReaderSetting string
	// Canceller cancels tasks. Nil: that route answers 503 like those of the Reader.
	Canceller Canceller
	// Scheduler holds tasks back that are to run later. Nil: a task with a run_at in
	// the future is answered 503.
	Scheduler Scheduler
	// Eraser erases conversations. Nil: that route answers 503 like those of the Reader.
	Eraser Eraser
	// Announcer is told of accepted tasks, so that their status can be read
	// before a worker has seen them. It is a hint: announcements are dropped
	// when it does not keep up. Nil: nobody is told.
	Announcer Announcer
	// Fingerprints tell a repeat from another task under the same Idempotency-Key,
	// which is refused with 422. A task whose key cannot be looked up within a
	// second is taken in without that. Nil: the key alone says that a task is a
	// repeat.
	Fingerprints Fingerprints
	// AnnounceQueue bounds how many announcements wait. Default: 10,000.
	AnnounceQueue int

	// Lag tells admission how far the workers are behind. Nil: every task is
	// admitted.
	Lag LagReader
	// MaxLag is the lag in records above which a priority is refused with 429.
	// A priority above its bound takes every lower one with it, so that the
	// highest is refused last. Missing or 0: 1,000,000. Negative: no bound.
	MaxLag map[millrace.Priority]int64
	// MaxLagAge is how long the oldest waiting record may have waited before
	// the priority is refused in the same way. Missing or 0: no bound.
	MaxLagAge map[millrace.Priority]time.Duration
	// LagInterval is how often the lag is read. Default: 1 s.
	LagInterval time.Duration
	// LagKeep is how long a lag that could not be read again still counts.
	// After that it is unknown, and what is unknown refuses nothing. Default:
	// 30 s.
	LagKeep time.Duration

	// LocalOnly refuses, with 403, requests to a host that is not on loopback and
	// requests from web pages of other servers. For a server that asks nobody who
	// they are and relies on its loopback address: a browser on the machine can
	// reach that on behalf of any page. Default: off.
	LocalOnly bool
	// MaxPayloadBytes bounds a task's payload. Default: 1 MiB.
	MaxPayloadBytes int
	// MaxDepth bounds how deep the JSON of a task nests. Default: 128.
	MaxDepth int
	// MaxBatchLines bounds the tasks of one batch. Default: 10,000.
	MaxBatchLines int
	// MaxBatchBytes bounds the body of a batch, inflated. Default: 64 MiB.
	MaxBatchBytes int64
	// BodyTimeout bounds how long a request body may take to arrive. Default:
	// 60 s.
	BodyTimeout time.Duration
	// WriteTimeout bounds how long a client may take to read an answer.
	// Default: 30 s.
	WriteTimeout time.Duration
	// ProduceTimeout bounds how long a task waits for Kafka's acknowledgement.
	// It should not be shorter than the client's record delivery timeout.
	// Default: 10 s.
	ProduceTimeout time.Duration
	// ReadTimeout bounds one question to the Reader. Default: 5 s.
	ReadTimeout time.Duration
	// MaxWaiters bounds the long polls held open at once. Default: 1,000.
	MaxWaiters int
	// DrainTimeout bounds how long a stop waits for open requests and for the
	// producer. Default: 15 s.
	DrainTimeout time.Duration

	// Logger takes failures of what the server depends on.
	Logger zerolog.Logger
	// Metrics takes the server's metrics. Nil: they are not registered.
	Metrics prometheus.Registerer
}

const (
	defaultMaxLag = 1_000_000
	// envelopeBytes is what a task's JSON may take beside its payload: all
	// attributes at their largest, escaped as the sender likes.
	envelopeBytes = 256 << 10
	// maxRecordBytes is what client and topics allow for a record.
	maxRecordBytes = 2 << 20
	// MaxPayloadLimit is the highest value of [Config.MaxPayloadBytes]: a record
	// of that payload and all its headers fits what client and topics allow.
	MaxPayloadLimit = maxRecordBytes - 64<<10
	// MaxWait is the longest long poll.
	MaxWait = 60 * time.Second
)

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	str := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	str(&c.TopicPrefix, "millrace.")
	str(&c.Source, "urn:millrace:ingest")
	str(&c.ReaderSetting, "MILLRACE_POSTGRES_URL")
	if len(c.Priorities) == 0 {
		c.Priorities = millrace.DefaultPriorities()
	}
	if c.DefaultPriority == "" {
		c.DefaultPriority = c.Priorities[len(c.Priorities)-1]
		if slices.Contains(c.Priorities, millrace.Normal) {
			c.DefaultPriority = millrace.Normal
		}
	}
	num(&c.AnnounceQueue, 10_000)
	num(&c.MaxPayloadBytes, 1<<20)
	num(&c.MaxDepth, 128)
	num(&c.MaxBatchLines, 10_000)
	num(&c.MaxWaiters, 1_000)
	if c.MaxBatchBytes == 0 {
		c.MaxBatchBytes = 64 << 20
	}
	def(&c.LagInterval, time.Second)
	def(&c.LagKeep, 30*time.Second)
	def(&c.BodyTimeout, 60*time.Second)
	def(&c.WriteTimeout, 30*time.Second)
	def(&c.ProduceTimeout, 10*time.Second)
	def(&c.ReadTimeout, 5*time.Second)
	def(&c.DrainTimeout, 15*time.Second)
}

func (c *Config) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Producer == nil {
		fail("producer: missing")
	}
	seen := make(map[millrace.Priority]bool)
	for _, p := range c.Priorities {
		if err := p.Validate(); err != nil {
			errs = append(errs, err)
		}
		if seen[p] {
			fail("priority %q: listed twice", string(p))
		}
		seen[p] = true
	}
	if !seen[c.DefaultPriority] {
		fail("default priority %q: not one of %v", string(c.DefaultPriority), c.Priorities)
	}
	for p := range c.MaxLag {
		if !seen[p] {
			fail("max lag: priority %q: not one of %v", string(p), c.Priorities)
		}
	}
	for p, age := range c.MaxLagAge {
		if !seen[p] {
			fail("max lag age: priority %q: not one of %v", string(p), c.Priorities)
		}
		if age < 0 {
			fail("max lag age %s for %q: want 0 or more", age, string(p))
		}
	}
	if c.MaxPayloadBytes < 0 || c.MaxPayloadBytes > MaxPayloadLimit {
		fail("max payload bytes %d: want 1 to %d", c.MaxPayloadBytes, MaxPayloadLimit)
	}
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"announce queue", int64(c.AnnounceQueue)},
		{"max depth", int64(c.MaxDepth)},
		{"max batch lines", int64(c.MaxBatchLines)},
		{"max batch bytes", c.MaxBatchBytes},
		{"max waiters", int64(c.MaxWaiters)},
		{"lag interval", int64(c.LagInterval)},
		{"lag keep", int64(c.LagKeep)},
		{"body timeout", int64(c.BodyTimeout)},
		{"write timeout", int64(c.WriteTimeout)},
		{"produce timeout", int64(c.ProduceTimeout)},
		{"read timeout", int64(c.ReadTimeout)},
		{"drain timeout", int64(c.DrainTimeout)},
	} {
		if f.value < 0 {
			fail("%s: want more than 0", f.name)
		}
	}
	return errors.Join(errs...)
}

// bodyLimit is the largest body of one task.
func (c *Config) bodyLimit() int64 { return int64(c.MaxPayloadBytes) + envelopeBytes }

func (c *Config) topic(p millrace.Priority) string { return c.TopicPrefix + "tasks." + string(p) }
