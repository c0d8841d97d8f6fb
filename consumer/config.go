package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// Store is what the engine needs of the conversation store.
type Store interface {
	// Open returns the conversation that a task runs on; it may be out of date.
	Open(ctx context.Context, task *millrace.Task) (millrace.Conversation, error)
	// Reload returns the conversation as it surely is.
	Reload(ctx context.Context, task *millrace.Task) (millrace.Conversation, error)
	// Completed returns those of the given runs of tasks that have been committed.
	Completed(ctx context.Context, keys []millrace.Key) (map[millrace.Key]bool, error)
	// Commit makes a completion durable and says what became of it.
	Commit(ctx context.Context, c millrace.Completion) (millrace.Outcome, error)
	// Coalesce makes it durable that a turn of leader answers members as well, and
	// returns those that it is to answer: what the journal holds for the leader until
	// it is complete, or else what is neither complete nor begun. Anew forgets what
	// the journal holds for the leader, its steps among it.
	Coalesce(ctx context.Context, leader millrace.Key, members []millrace.Key, anew bool) ([]millrace.Key, error)
}

// Cancels is what tells the engine of cancels.
type Cancels interface {
	// WatchCancels tells of cancels until ctx ends. At first it tells of recent ones
	// again. Each is a hint. It returns an error when it can tell no more.
	WatchCancels(ctx context.Context, told func([]millrace.Cancel)) error
}

// Config configures an [Engine]. Zero values mean the defaults.
type Config struct {
	// Kafka holds what is needed to reach the brokers: seeds, TLS, SASL, client
	// id. Required.
	Kafka []kgo.Opt
	// TopicPrefix stands before every topic and group. Default "millrace.".
	TopicPrefix string
	// Pool names the consumer group, together with the prefix. Default "default".
	Pool string
	// Priorities are those that this pool serves, highest first. Default high,
	// normal, batch.
	Priorities []millrace.Priority
	// Split says that other pools serve other priorities, of the same
	// conversations: a turn then takes a lease in Redis. A pool also notices others
	// once their workers have shown up in Redis. Default: this pool is alone.
	Split bool
	// Handler runs the turns. Required.
	Handler millrace.Handler
	// Store reads and commits. Required.
	Store Store
	// History reads older messages for turns. Nil: turns see the newest ones only.
	History millrace.HistoryReader
	// Cancels tells of tasks that are cancelled, so that their turns end early. Nil:
	// they run to their end and commit nothing.
	Cancels Cancels
	// Fences keeps how far the records of each partition may have been started. Nil:
	// all that was in the log when reading began is looked up.
	Fences Fences
	// Erasures tells of conversations that are erased, so that they leave the memory at
	// once. Nil: they stay until their next turn, which is run on what there is then.
	Erasures Erasures
	// Journal keeps the outcome of steps. Nil: steps run anew at every attempt.
	Journal millrace.Journal
	// Transactions opens the transactions that handlers ask for. Nil: they get none.
	Transactions millrace.Transactions
	// Redis is where running turns are announced to the next owner of their
	// partition. Nil: such turns are canceled, and run anew there.
	Redis redis.UniversalClient
	// KeyPrefix stands before every Redis key. Default "millrace:".
	KeyPrefix string
	// Dependencies are asked once in a while, and while one of them is out no turn
	// starts. Kafka is always one of them. Default none: an outage is what a turn
	// runs into.
	Dependencies []Dependency
	// Slots is how many turns run at once. Default 100.
	Slots int
	// Reserved keeps slots free for a priority. Together at most Slots.
	Reserved map[millrace.Priority]int
	// AgingAfter is how long a conversation of a lower priority waits before every
	// sixteenth free slot goes to it first. Default 5 s.
	AgingAfter time.Duration
	// MaxAttempts is how often a task's handler is tried, unless the task says
	// otherwise. Default 5.
	MaxAttempts int
	// RetryMin and RetryMax bound the exponential backoff between attempts, of
	// which a random part is waited (full jitter). Default 200 ms and 30 s.
	RetryMin, RetryMax time.Duration
	// TurnTimeout ends a handler's context. A turn that outlives it has failed,
	// whatever its handler returns. Default 10 min.
	TurnTimeout time.Duration
	// TypeTimeouts take the place of TurnTimeout for tasks of a type.
	TypeTimeouts map[string]time.Duration
	// StuckAfter is how long a handler may go on after its context has ended before
	// it is reported as stuck. Default 10 s.
	StuckAfter time.Duration
	// StuckLimit is how long after the end of its context a handler may still run
	// before the worker reports that it is not live: only a restart frees the slot.
	// Default 5 min.
	StuckLimit time.Duration
	// RevokeGrace is how long running turns may go on when their partition is taken
	// away and they cannot be announced, before they are canceled. Default 800 ms; must be below 2 s, since the
	// group waits meanwhile.
	RevokeGrace time.Duration
	// DrainTimeout is how long running turns may go on when the worker is told to
	// stop. Default 25 s.
	DrainTimeout time.Duration
	// IntakeBytes bounds the records that wait in memory, an equal share for each
	// priority. What the client has fetched ahead comes on top. Default 256 MiB.
	IntakeBytes int64
	// IntakeOffsets bounds how far a partition is read ahead of its lowest
	// unfinished offset. Default 100,000.
	IntakeOffsets int64
	// CacheBytes bounds the conversations that are kept in memory between their
	// turns. Default 64 MiB; negative keeps none.
	CacheBytes int64
	// Host and Addr are where this worker can be asked over HTTP: the machine's name
	// and host:port. Other processes learn them from Redis. Empty: it is not asked.
	Host, Addr string
	// InstanceID makes the member static: it keeps its partitions over a restart
	// within the session time-out. Empty means a dynamic member.
	InstanceID string
	// Logger defaults to a disabled one.
	Logger *zerolog.Logger
	// Metrics registers the engine's metrics. Nil registers none.
	Metrics prometheus.Registerer
}

const defaultKeyPrefix = "millrace:"

func (c *Config) validate() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(len(c.Kafka) > 0, "Kafka is required")
	require(c.Handler != nil, "Handler is required")
	require(c.Store != nil, "Store is required")
	require(c.Slots >= 0, "Slots %d: want 1 or more", c.Slots)
	require(c.MaxAttempts >= 0 && c.MaxAttempts <= millrace.MaxAttempts, "MaxAttempts %d: want 1 to %d", c.MaxAttempts, millrace.MaxAttempts)
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"AgingAfter", c.AgingAfter},
		{"RetryMin", c.RetryMin},
		{"RetryMax", c.RetryMax},
		{"TurnTimeout", c.TurnTimeout},
		{"StuckAfter", c.StuckAfter},
		{"StuckLimit", c.StuckLimit},
		{"DrainTimeout", c.DrainTimeout},
	} {
		require(d.value >= 0, "%s %s: want a positive duration", d.name, d.value)
	}
	if err := c.validateTimeouts(); err != nil {
		errs = append(errs, err)
	}
	require(c.IntakeBytes >= 0, "IntakeBytes %d: want 1 or more", c.IntakeBytes)
	require(c.IntakeOffsets >= 0, "IntakeOffsets %d: want 1 or more", c.IntakeOffsets)
	require(c.RevokeGrace >= 0 && c.RevokeGrace < 2*time.Second, "RevokeGrace %s: want less than 2s", c.RevokeGrace)
	for i, d := range c.Dependencies {
		require(d.Name != "" && d.Name != millrace.Kafka && d.Check != nil, "Dependencies[%d] %q: want a name, other than %q, and a check", i, d.Name, millrace.Kafka)
	}
	seen := make(map[millrace.Priority]bool)
	for _, p := range c.Priorities {
		if err := p.Validate(); err != nil {
			errs = append(errs, err)
		}
		require(!seen[p], "priority %q is listed twice", p)
		seen[p] = true
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() error {
	if c.TopicPrefix == "" {
		c.TopicPrefix = "millrace."
	}
	if c.KeyPrefix == "" {
		c.KeyPrefix = defaultKeyPrefix
	}
	if c.Pool == "" {
		c.Pool = "default"
	}
	if len(c.Priorities) == 0 {
		c.Priorities = millrace.DefaultPriorities()
	}
	c.Slots = cmp.Or(c.Slots, 100)
	c.AgingAfter = cmp.Or(c.AgingAfter, 5*time.Second)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 5)
	c.RetryMin = cmp.Or(c.RetryMin, 200*time.Millisecond)
	c.RetryMax = cmp.Or(c.RetryMax, 30*time.Second)
	c.TurnTimeout = cmp.Or(c.TurnTimeout, 10*time.Minute)
	c.StuckAfter = cmp.Or(c.StuckAfter, 10*time.Second)
	c.StuckLimit = cmp.Or(c.StuckLimit, 5*time.Minute)
	c.RevokeGrace = cmp.Or(c.RevokeGrace, 800*time.Millisecond)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 25*time.Second)
	c.IntakeBytes = cmp.Or(c.IntakeBytes, 256<<20)
	c.IntakeOffsets = cmp.Or(c.IntakeOffsets, 100_000)
	c.CacheBytes = cmp.Or(c.CacheBytes, 64<<20)
	var errs []error
	total := 0
	for p, n := range c.Reserved {
		known := false
		for _, q := range c.Priorities {
			known = known || p == q
		}
		if !known {
			errs = append(errs, fmt.Errorf("slots are reserved for priority %q, which this pool does not serve", p))
		}
		if n < 0 {
			errs = append(errs, fmt.Errorf("reserved slots for %q: %d, want 0 or more", p, n))
		}
		total += n
	}
	if total > c.Slots {
		errs = append(errs, fmt.Errorf("%d slots are reserved, there are %d", total, c.Slots))
	}
	if total == c.Slots {
		for _, p := range c.Priorities {
			if c.Reserved[p] == 0 {
				errs = append(errs, fmt.Errorf("all %d slots are reserved for other priorities: tasks of priority %q would never run", total, p))
			}
		}
	}
	if c.RetryMin > c.RetryMax {
		errs = append(errs, fmt.Errorf("RetryMin %s is above RetryMax %s", c.RetryMin, c.RetryMax))
	}
	return errors.Join(errs...)
}

// Topic returns the topic of a priority.
func Topic(prefix string, p millrace.Priority) string { return prefix + "tasks." + string(p) }

// Group returns the consumer group of a pool.
func Group(prefix, pool string) string { return prefix + pool }
