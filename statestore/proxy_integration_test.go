//go:build integration

package statestore

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"millrace"
)

func newPool(t *testing.T, cfg *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// cutter stands between a pool and PostgreSQL and, when armed, cuts the next
// connection that carries an answer after that many bytes of it.
type cutter struct {
	listener net.Listener
	target   string
	left     atomic.Int64 // bytes of answers until the cut; negative when not armed
	cuts     atomic.Int64
}

// newCutPool returns a pool of one connection that goes through a cutter.
func newCutPool(t *testing.T, through *pgxpool.Pool) (*pgxpool.Pool, *cutter) {
	t.Helper()
	cfg := through.Config()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: listener, target: net.JoinHostPort(cfg.ConnConfig.Host, strconv.Itoa(int(cfg.ConnConfig.Port)))}
	c.left.Store(-1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { c.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, listener.Addr().String())
	}
	cfg.MaxConns = 1
	return newPool(t, cfg), c
}

func (c *cutter) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if left := c.left.Load(); left >= 0 {
			if int64(n) > left {
				c.left.Store(-1)
				c.cuts.Add(1)
				_, _ = client.Write(buf[:left])
				return
			}
			c.left.Add(-int64(n))
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestUnknownOutcomesAreSettledByTheToken loses the connection at every stage of
// the answer to a commit, up to the last byte. The turn must be told that it has
// committed, and never that another run did.
func TestUnknownOutcomesAreSettledByTheToken(t *testing.T) {
	direct := newDatabase(t)
	pool, cut := newCutPool(t, direct)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	turns := 0
	for bytes := int64(0); ; bytes += 3 {
		// On a warm connection, so that what is cut is the answer to the commit.
		if err := pool.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustCommit(t, s, completion(fmt.Sprintf("warm-%d", bytes), millrace.Conversation{ID: fmt.Sprintf("warm-%d", bytes)}), millrace.Committed)
		before := cut.cuts.Load()
		cut.left.Store(bytes)
		id := fmt.Sprintf("task-%d", bytes)
		mustCommit(t, s, completion(id, millrace.Conversation{ID: id}), millrace.Committed)
		cut.left.Store(-1)
		turns += 2
		if cut.cuts.Load() == before {
			break // the whole answer is shorter than this
		}
	}
	t.Logf("%d cuts", cut.cuts.Load())
	if cut.cuts.Load() < 20 {
		t.Errorf("only %d cuts", cut.cuts.Load())
	}
	for table, want := range map[string]int{"messages": turns, "outbox": 2 * turns, "completions": turns, "conversations WHERE version = 1": turns} {
		if n := count(t, direct, `SELECT count(*) FROM millrace.`+table); n != want {
			t.Errorf("%d rows in %s, want %d", n, table, want)
		}
	}
}

// TestACommitHandedInAgainAfterTheCallerGaveUpIsSettled: the first call's effects
// stand, and the second leaves none.
func TestACommitHandedInAgainAfterTheCallerGaveUpIsSettled(t *testing.T) {
	pool := newDatabase(t)
	s := run(t, Config{Pool: pool, Redis: newRedis(t)})
	c := completion("task", millrace.Conversation{ID: "conv"})
	mustCommit(t, s, completion("other", millrace.Conversation{ID: "other"}), millrace.Committed)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `INSERT INTO millrace.conversations (id) VALUES ('conv')`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Commit(ctx, c)
		first <- err
	}()
	awaitBlocked(t, pool, 1)
	cancel()
	if err := <-first; !millrace.IsUnavailable(err) {
		t.Errorf("given up: %v", err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := s.Commit(t.Context(), c)
		second <- err
	}()
	awaitBlocked(t, pool, 2)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-second; err != nil {
		t.Error(err)
	}
	mustCommit(t, s, c, millrace.AlreadyCompleted)
	if n := count(t, pool, `SELECT count(*) FROM millrace.messages WHERE conversation_id = 'conv'`); n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
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
