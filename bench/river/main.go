// Command river measures River: it inserts no-op jobs into a schema of its own, works
// them with batch completion, and prints {"rate": jobs a second} from the first job
// that runs to the last that PostgreSQL has as completed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

const (
	insertBatch = 5000
	// stuckAfter is how long no job may complete.
	stuckAfter = time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var (
		postgres = os.Getenv("MILLRACE_POSTGRES_URL")
		jobs     = flag.Int("records", 200_000, "jobs")
		conns    = flag.Int("conns", 10, "connections to PostgreSQL")
		workers  = flag.Int("workers", 2000, "jobs at once")
	)
	flag.Parse()
	rate, err := run(ctx, postgres, *jobs, *conns, *workers)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(map[string]float64{"rate": rate})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		stop()
		os.Exit(1)
	}
}

// noop is a job that does nothing.
type noop struct {
	Number int `json:"number"`
}

func (noop) Kind() string { return "noop" }

// noopWorker notes when the first job begins.
type noopWorker struct {
	river.WorkerDefaults[noop]
	once  sync.Once
	began time.Time
}

func (w *noopWorker) Work(context.Context, *river.Job[noop]) error {
	w.once.Do(func() { w.began = time.Now() })
	return nil
}

func run(ctx context.Context, postgres string, jobs, conns, workers int) (rate float64, err error) {
	cfg, err := pgxpool.ParseConfig(postgres)
	if err != nil {
		return 0, errors.New("MILLRACE_POSTGRES_URL: not a URL of PostgreSQL")
	}
	cfg.MaxConns = int32(conns) //nolint:gosec // a small number
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return 0, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer pool.Close()
	schema := "bench_river_" + strconv.FormatUint(rand.Uint64(), 36)
	if _, err := pool.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{schema}.Sanitize()); err != nil {
		return 0, fmt.Errorf("create schema: %w", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		_, dropErr := pool.Exec(ctx, "DROP SCHEMA "+pgx.Identifier{schema}.Sanitize()+" CASCADE")
		err = errors.Join(err, dropErr)
	}()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Schema: schema, Logger: logger})
	if err != nil {
		return 0, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}

	worker := &noopWorker{}
	registered := river.NewWorkers()
	river.AddWorker(registered, worker)
	// The intervals and the workers of River's own benchmark ("river bench").
	client, err := river.NewClient(driver, &river.Config{
		Schema: schema, Logger: logger, Workers: registered,
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
	})
	if err != nil {
		return 0, err
	}
	for from := 0; from < jobs; from += insertBatch {
		params := make([]river.InsertManyParams, min(insertBatch, jobs-from))
		for i := range params {
			params[i].Args = noop{Number: from + i}
		}
		if _, err := client.InsertManyFast(ctx, params); err != nil {
			return 0, fmt.Errorf("insert jobs: %w", err)
		}
	}
	// Told after the jobs' new state is committed. There is room for all, so that
	// none is dropped.
	completed, cancel := client.SubscribeConfig(&river.SubscribeConfig{
		ChanSize: jobs, Kinds: []river.EventKind{river.EventKindJobCompleted, river.EventKindJobFailed},
	})
	defer cancel()
	if err := client.Start(ctx); err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	last, err := await(ctx, completed, jobs)
	stopCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer stop()
	if err = errors.Join(err, client.Stop(stopCtx)); err != nil {
		return 0, err
	}
	var left int
	table := pgx.Identifier{schema, "river_job"}.Sanitize()
	if err := pool.QueryRow(ctx, "SELECT count(*) FROM "+table+" WHERE state <> 'completed'").Scan(&left); err != nil {
		return 0, err
	}
	if left > 0 {
		return 0, fmt.Errorf("%d of %d jobs are not completed", left, jobs)
	}
	return float64(jobs) / last.Sub(worker.began).Seconds(), nil
}

// await returns when the last of n jobs completed.
func await(ctx context.Context, completed <-chan *river.Event, n int) (time.Time, error) {
	stuck := time.NewTimer(stuckAfter)
	defer stuck.Stop()
	for i := range n {
		select {
		case event := <-completed:
			if event.Kind != river.EventKindJobCompleted {
				return time.Time{}, fmt.Errorf("job %d failed", event.Job.ID)
			}
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-stuck.C:
			return time.Time{}, fmt.Errorf("stuck at %d jobs", i)
		}
		if i%1000 == 0 {
			stuck.Reset(stuckAfter)
		}
	}
	return time.Now(), nil
}
