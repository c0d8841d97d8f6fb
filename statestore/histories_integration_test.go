//go:build integration

package statestore

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"millrace"
)

var (
	historiesSeed  = flag.Uint64("histories.seed", 0, "seed of the first history of TestCommitHistories; 0 draws one")
	historiesCount = flag.Int("histories.count", 4, "how many histories TestCommitHistories makes")
)

// TestCommitHistories lets workers whose connections break at any byte run tasks
// of a few conversations at once: the same task several times, on versions that
// are no longer the newest, handed in again after an unknown outcome, cancelled,
// given up on, redriven, ended along with others. Then it compares the tables
// with a model of what the workers were told.
//
// A seed draws what the workers try and where connections break. How their
// statements interleave is up to the machine, so a seed may have to run more than
// once.
func TestCommitHistories(t *testing.T) {
	seed := *historiesSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	pool, redis := newDatabase(t), newRedis(t)
	mustExec(t, pool, dawdleSQL)
	for i := range *historiesCount {
		seed := seed + uint64(i)
		began := time.Now()
		h := newHistory(t, seed, pool)
		h.run(t, redis)
		h.check(t)
		t.Logf("seed %d: %s, %s", seed, h, time.Since(began).Round(time.Millisecond))
		if t.Failed() {
			t.Fatalf("to repeat: go test -tags integration -run '^TestCommitHistories$' -count 1 ./statestore -histories.seed=%d -histories.count=1", seed)
		}
	}
}

// dawdleSQL makes the server take its time here and there between what it writes,
// so that transactions meet while they hold some locks and want others.
const dawdleSQL = `
	CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF random() < TG_ARGV[0]::float8 THEN
			PERFORM pg_sleep(random() * 0.006);
		END IF;
		RETURN NEW;
	END $$;
	CREATE TRIGGER dawdle_row BEFORE INSERT ON millrace.completions FOR EACH ROW EXECUTE FUNCTION dawdle(0.2);
	CREATE TRIGGER dawdle BEFORE INSERT ON millrace.completions FOR EACH STATEMENT EXECUTE FUNCTION dawdle(0.3);
	CREATE TRIGGER dawdle BEFORE INSERT ON millrace.messages FOR EACH STATEMENT EXECUTE FUNCTION dawdle(0.3);
	CREATE TRIGGER dawdle AFTER INSERT ON millrace.outbox FOR EACH STATEMENT EXECUTE FUNCTION dawdle(0.3);`

const (
	historyWorkers       = 3
	historyLanes         = 16 // of each worker
	historyActions       = 4
	historyConversations = 8
	historyTasks         = 150
)

// attempt is one turn as its worker hands it in. Its id is in all its effects.
type attempt struct {
	id         string
	completion millrace.Completion
	calls      []commitCall
}

type commitCall struct {
	began, ended time.Time
	outcome      millrace.Outcome
	err          error
}

func (a *attempt) key() millrace.Key { return a.completion.Task.Key() }

// opened is a conversation as a worker was given it.
type opened struct {
	conv millrace.Conversation
	from string
}

// history is one run of the test and what its workers were told.
type history struct {
	seed   uint64
	direct *pgxpool.Pool
	faults []*faults

	mu       sync.Mutex
	redrives map[string]int // the newest of each task
	stale    map[string][]millrace.Conversation
	attempts []*attempt
	opened   []opened
	cancels  []toldCancelled
	begun    map[millrace.Key]time.Time // when the last call of the journal had ended
	finished map[string]bool            // outputs that were handed to the journal
	replayed []string                   // outputs that it gave back
	problems []string
}

// toldCancelled is what the caller of Cancel was told.
type toldCancelled struct {
	id     string
	status millrace.Status
}

func newHistory(t *testing.T, seed uint64, direct *pgxpool.Pool) *history {
	mustExec(t, direct, `TRUNCATE millrace.conversations, millrace.messages, millrace.completions, millrace.steps,
		millrace.outbox, millrace.dead_letters, millrace.erasures RESTART IDENTITY`)
	return &history{
		seed: seed, direct: direct,
		redrives: make(map[string]int), stale: make(map[string][]millrace.Conversation),
		begun: make(map[millrace.Key]time.Time), finished: make(map[string]bool),
	}
}

func (h *history) problem(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problems = append(h.problems, fmt.Sprintf(format, args...))
}

// breaking returns what draws how much the connections of one worker bear. Small
// numbers are as likely as large ones: they hit how a connection begins.
func breaking(seed uint64, worker int) func() budget {
	rng := rand.New(rand.NewPCG(seed, 1000+uint64(worker)))
	var mu sync.Mutex
	return func() budget {
		mu.Lock()
		defer mu.Unlock()
		bytes := int64(math.Exp(rng.Float64() * math.Log(200<<10)))
		switch rng.IntN(5) {
		case 0, 1:
			return budget{Written: bytes, Read: -1}
		case 2, 3:
			return budget{Written: -1, Read: bytes}
		}
		return unlimited
	}
}

// run makes the history and returns when nothing of it is under way any more.
func (h *history) run(t *testing.T, redis redis.UniversalClient) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watch := watchOrder(ctx, h.direct)
	shape := rand.New(rand.NewPCG(h.seed, 0))
	var stores, lanes sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	defer stop()
	for w := range historyWorkers {
		f := &faults{dialled: breaking(h.seed, w)}
		h.faults = append(h.faults, f)
		cfg := h.direct.Config()
		cfg.ConnConfig.RuntimeParams["application_name"] = "worker"
		pool := newFaultyPool(t, cfg, f, 4)
		s, err := New(Config{
			Pool: pool, Redis: redis, KeyPrefix: fmt.Sprintf("%d:", h.seed), Committers: 1 + shape.IntN(2), BatchSize: 2 + shape.IntN(12),
			// One worker gives up while others hold what it waits for.
			CommitTimeout: []time.Duration{20 * time.Second, 20 * time.Second, 100 * time.Millisecond}[w],
		})
		if err != nil {
			t.Fatal(err)
		}
		stores.Go(func() {
			_ = s.Run(running) // returns nil
			pool.Close()
		})
		for n := range historyLanes {
			l := &historyLane{
				history: h, store: s, letters: NewDeadLetterStore(pool), name: fmt.Sprintf("%d.%d", w, n),
				rng: rand.New(rand.NewPCG(h.seed, uint64(1+w*historyLanes+n))),
			}
			lanes.Go(func() {
				for range historyActions {
					l.act(ctx)
				}
			})
		}
	}
	lanes.Wait()
	stop()
	stores.Wait()
	h.awaitNoWorker(t)
	for _, problem := range watch() {
		h.problem("%s", problem)
	}
	if ctx.Err() != nil {
		t.Fatalf("seed %d: not through after two minutes", h.seed)
	}
}

// awaitNoWorker waits until the backends of lost connections have ended: one of
// them may be about to commit.
func (h *history) awaitNoWorker(t *testing.T) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); {
		if count(t, h.direct, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'worker'`) == 0 {
			return
		}
	}
	t.Fatal("backends of closed connections do not end")
}

// watchOrder reads the outbox all the time, as a relay does, and returns what
// stops it and says which rows came behind others of their key although their ids
// are lower.
func watchOrder(ctx context.Context, pool *pgxpool.Pool) (stop func() []string) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan []string, 1)
	go func() {
		var problems []string
		seen, newest := make(map[int64]bool), make(map[string]int64)
		tick := time.NewTicker(4 * time.Millisecond)
		defer tick.Stop()
		for {
			rows, err := readOutbox(ctx, pool)
			if err != nil && ctx.Err() == nil {
				problems = append(problems, fmt.Sprintf("read the outbox: %v", err))
			}
			latest := make(map[string]int64)
			for _, row := range rows {
				if !seen[row.id] && row.id < newest[row.key] {
					problems = append(problems, fmt.Sprintf("event %s with id %d came after id %d of key %q", row.event, row.id, newest[row.key], row.key))
				}
				seen[row.id] = true
				latest[row.key] = max(latest[row.key], row.id)
			}
			for key, id := range latest {
				newest[key] = max(newest[key], id)
			}
			select {
			case <-ctx.Done():
				done <- problems
				return
			case <-tick.C:
			}
		}
	}()
	return func() []string {
		cancel()
		return <-done
	}
}
