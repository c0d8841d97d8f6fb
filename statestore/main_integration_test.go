//go:build integration

package statestore

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"millrace"
	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// newDatabase returns a pool on a migrated database of the test's own.
func newDatabase(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := Migrate(t.Context(), conn.Conn()); err != nil {
		t.Fatal(err)
	}
	return pool
}

func newPool(t testing.TB, cfg *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// awaitBlocked waits until n backends of the test's database wait for a lock.
func awaitBlocked(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); {
		if count(t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) >= n {
			return
		}
	}
	t.Fatalf("fewer than %d backends wait for a lock", n)
}

func newRedis(t testing.TB) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// run starts a store on the given services and stops it when the test ends.
func run(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return run(t, Config{Pool: newDatabase(t), Redis: newRedis(t)})
}

// completion returns a finished turn that appends one message, sets the state and
// emits one event.
func completion(id string, base millrace.Conversation) millrace.Completion {
	now := time.Now().UTC().Truncate(time.Microsecond)
	return millrace.Completion{
		Task:   millrace.Task{ID: id, Conversation: base.ID, Type: "chat", Priority: millrace.Normal},
		Status: millrace.StatusCompleted,
		Base:   base,
		Effects: millrace.Effects{
			State:    []byte(`{"last":"` + id + `"}`),
			Messages: []millrace.Message{{Role: millrace.RoleUser, Content: "said by " + id}},
			Events:   []millrace.Event{{Type: "said", Topic: "events", Data: []byte(`{}`)}},
			Result:   []byte(`"done"`),
			Usage:    millrace.Usage{Calls: 1, InputTokens: 10, OutputTokens: 20},
		},
		Attempts: 1, StartedAt: now, FinishedAt: now,
	}
}

func newID() string { return uuid.NewString() }

func mustCommit(t *testing.T, s *Store, c millrace.Completion, want millrace.Outcome) {
	t.Helper()
	got, err := s.Commit(t.Context(), c)
	if err != nil {
		t.Fatalf("commit %s: %v", c.Task.ID, err)
	}
	if got != want {
		t.Fatalf("commit %s: %v, want %v", c.Task.ID, got, want)
	}
}

// count returns the number of rows that a query counts.
func count(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
