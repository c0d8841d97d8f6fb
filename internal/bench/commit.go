package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/internal/handler"
	"millrace/internal/kafka"
	"millrace/statestore"
)

// CommitConfig configures the benchmarks of turns with state. Zero values mean
// the defaults.
type CommitConfig struct {
	Env
	// Only names the benchmarks to run, of [CommitNames]. Default: all, in order.
	Only []string
	// Records is how many tasks turns runs. Default 200,000.
	Records int
	// Slots is how many of them run at once. Default 1,000.
	Slots int
	// Opens is how often open and history open a conversation. Default 2,000.
	Opens int
}

var commitBenchmarks = suite[*commitRun]{
	{"turns", (*commitRun).turns},
	{"open", (*commitRun).open},
	{"history", (*commitRun).history},
}

// CommitNames returns the benchmarks of turns with state in the order they run.
func CommitNames() []string { return commitBenchmarks.names() }

// Validate reports all that is wrong with the configuration.
func (c *CommitConfig) Validate() error {
	errs := commitBenchmarks.check(c.Only)
	if c.Records < 0 || c.Slots < 0 || c.Opens < 0 {
		errs = append(errs, errors.New("records, slots and opens must not be negative"))
	}
	return errors.Join(errs...)
}

type commitRun struct {
	CommitConfig
	run
}

// Commit runs the benchmarks of turns with state and reports each figure as it
// comes.
func Commit(ctx context.Context, cfg CommitConfig, report func(Result) error) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.Records == 0 {
		cfg.Records = 200_000
	}
	if cfg.Slots == 0 {
		cfg.Slots = 1000
	}
	if cfg.Opens == 0 {
		cfg.Opens = 2000
	}
	r := &commitRun{CommitConfig: cfg}
	if r.run, err = newRun(ctx, cfg.Env, "", report); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.place.remove(ctx)) }()
	return commitBenchmarks.run(ctx, r, "commit", cfg.Only)
}

// turnsBound is what is promised of whole turns on a machine of two cores.
const turnsBound = 12_000

// turns measures whole turns of the handler echo, from the task in the topic to
// the published result: state, two messages, completion and event.
func (r *commitRun) turns(ctx context.Context) error {
	s, err := r.place.topics(ctx, "commit")
	if err != nil {
		return err
	}
	s.Slots, s.Results, s.Relay = r.Slots, true, true
	if err := preload(ctx, r.place.client, load{
		topic: s.TaskTopic(millrace.Normal), records: r.Records, keys: Keys(10_000),
	}, r.env.Progress); err != nil {
		return err
	}
	opts, err := kafka.Options(&s, "bench", r.env.Log)
	if err != nil {
		return err
	}
	results, err := kgo.NewClient(append(opts,
		kgo.ConsumeTopics(s.TopicPrefix+"results"), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)...)
	if err != nil {
		return fmt.Errorf("open consumer: %w", err)
	}
	defer results.Close()

	var (
		once      sync.Once
		began     atomic.Int64
		published atomic.Int64
		last      atomic.Int64
		failed    error
		all       = make(chan struct{})
		reading   sync.WaitGroup
	)
	readCtx, stopReading := context.WithCancel(ctx)
	reading.Go(func() {
		failed = readResults(readCtx, results, r.Records, &published)
		last.Store(time.Now().UnixNano())
		close(all)
	})
	handle := func(ctx context.Context, turn *millrace.Turn) error {
		once.Do(func() { began.Store(time.Now().UnixNano()) })
		return handler.Echo{}.Handle(ctx, turn)
	}
	say(r.env.Progress, "commit.turns: %d tasks, %d slots", r.Records, r.Slots)
	before, _ := cpuTime()
	err = r.withWorker(ctx, s, handle, func(ctx context.Context, _ *prometheus.Registry) error {
		return r.watch(ctx, &published, all)
	})
	stopReading()
	reading.Wait()
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	if err := r.checkCommitted(ctx, &s, int64(r.Records)); err != nil {
		return err
	}
	if err := r.reportCPU("commit.turns.cpu", before, r.Records, "turn"); err != nil {
		return err
	}
	rate := float64(r.Records) / time.Duration(last.Load()-began.Load()).Seconds()
	return r.report(AtLeast("commit.turns", rate, "turns/s", turnsBound))
}

// readResults reads results until it has one of each of n tasks.
func readResults(ctx context.Context, results *kgo.Client, n int, published *atomic.Int64) error {
	seen := make(map[string]bool, n)
	for len(seen) < n {
		fetches := results.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read results: %w", err)
		}
		var twice error
		fetches.EachRecord(func(record *kgo.Record) {
			id := ""
			for _, h := range record.Headers {
				if h.Key == "ce_id" {
					id = string(h.Value)
				}
			}
			if seen[id] {
				twice = fmt.Errorf("the result %q was published twice", id)
			}
			seen[id] = true
		})
		if twice != nil {
			return twice
		}
		published.Store(int64(len(seen)))
	}
	return nil
}

// withStore runs a store of its own, without a worker.
func (r *commitRun) withStore(ctx context.Context, measure func(*statestore.Store) error) (err error) {
	s := r.place.settings
	postgres, err := s.PostgresConfig()
	if err != nil {
		return fmt.Errorf("MILLRACE_POSTGRES_URL: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, postgres)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer pool.Close()
	client, err := s.RedisClient(0)
	if err != nil {
		return fmt.Errorf("MILLRACE_REDIS_URL: %w", err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	store, err := statestore.New(statestore.Config{
		Pool: pool, Redis: client, KeyPrefix: r.place.prefix, TTL: time.Minute, Logger: &r.env.Log,
	})
	if err != nil {
		return err
	}
	storeCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- store.Run(storeCtx) }()
	err = measure(store)
	stop()
	return errors.Join(err, <-ended)
}

// openRate is how often a second conversations are opened: without a queue.
const openRate = 500

// open measures how long it takes to open conversations that Redis holds.
func (r *commitRun) open(ctx context.Context) error {
	const conversations = 500
	return r.withStore(ctx, func(store *statestore.Store) error {
		for i := range conversations {
			if err := r.talk(ctx, store, fmt.Sprintf("open-%d", i), 10); err != nil {
				return err
			}
		}
		say(r.env.Progress, "commit.open: %d opens, %d a second", r.Opens, openRate)
		took := make([]time.Duration, r.Opens)
		start := time.Now()
		for i := range took {
			if err := pause(ctx, time.Until(start.Add(time.Duration(i)*time.Second/openRate))); err != nil {
				return err
			}
			task := millrace.Task{ID: unique("task-"), Conversation: fmt.Sprintf("open-%d", i%conversations)}
			began := time.Now()
			conv, err := store.Open(ctx, &task)
			took[i] = time.Since(began)
			if err != nil {
				return err
			}
			if conv.Length != 10 || len(conv.Tail) != 10 {
				return fmt.Errorf("conversation %s opened with %d of %d messages, want all 10", conv.ID, len(conv.Tail), conv.Length)
			}
		}
		slices.Sort(took)
		if err := r.report(Plain("commit.open.p50", quantile(took, 0.50), "ms")); err != nil {
			return err
		}
		return r.report(AtMost("commit.open.p99", quantile(took, 0.99), "ms", 1))
	})
}

// history measures how much longer a turn takes in a long conversation: to open
// it from Redis, and to commit two messages and the state.
func (r *commitRun) history(ctx context.Context) error {
	return r.withStore(ctx, func(store *statestore.Store) error {
		lengths := []int{10, 10_000}
		took := make([][]time.Duration, len(lengths))
		for _, n := range lengths {
			if err := r.talk(ctx, store, fmt.Sprintf("history-%d", n), n); err != nil {
				return err
			}
		}
		say(r.env.Progress, "commit.history: %d turns in each conversation", r.Opens/2)
		for range r.Opens / 2 {
			// In turns: what disturbs the machine disturbs both.
			for i, n := range lengths {
				d, err := r.turnIn(ctx, store, fmt.Sprintf("history-%d", n), 2, 20)
				if err != nil {
					return err
				}
				took[i] = append(took[i], d)
			}
		}
		for i := range took {
			slices.Sort(took[i])
		}
		short, long := quantile(took[0], 0.50), quantile(took[1], 0.50)
		if err := r.report(Plain("commit.history.short", short, "ms")); err != nil {
			return err
		}
		return r.report(AtMost("commit.history", long, "ms", 1.2*short))
	})
}

// talk fills a conversation with messages.
func (r *commitRun) talk(ctx context.Context, store *statestore.Store, conversation string, messages int) error {
	for left := messages; left > 0; {
		n := min(left, 1000)
		if _, err := r.turnIn(ctx, store, conversation, n, valueSize); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// turnIn opens a conversation and commits a turn that appends messages of some
// size. It returns how long that took.
func (r *commitRun) turnIn(ctx context.Context, store *statestore.Store, conversation string, messages, size int) (time.Duration, error) {
	task := millrace.Task{ID: unique("task-"), Conversation: conversation, Type: millrace.DefaultType, Priority: millrace.Normal}
	began := time.Now()
	conv, err := store.Open(ctx, &task)
	if err != nil {
		return 0, err
	}
	c := millrace.Completion{
		Task: task, Status: millrace.StatusCompleted, Base: conv, Attempts: 1, StartedAt: began, FinishedAt: time.Now(),
		Effects: millrace.Effects{State: []byte(`{"turns":1}`)},
	}
	for range messages {
		c.Effects.Messages = append(c.Effects.Messages, millrace.Message{Role: millrace.RoleUser, Content: strings.Repeat("x", size)})
	}
	outcome, err := store.Commit(ctx, c)
	if err != nil {
		return 0, err
	}
	if outcome != millrace.Committed {
		return 0, fmt.Errorf("a turn of %s ended as %v", conversation, outcome)
	}
	return time.Since(began), nil
}
