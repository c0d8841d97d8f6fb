//go:build integration

package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/outbox"
)

var errDead = errors.New("the process is dead")

// guillotine is the network of a process that dies at its n-th write, counted over
// all connections: every statement and every Kafka request is one. The write is
// lost with the process, or it arrives and nobody is there for the answer.
type guillotine struct {
	at      int
	arrives bool
	fell    chan struct{}

	mu     sync.Mutex
	writes int
	dead   bool
	conns  []net.Conn
}

func newGuillotine(at int, arrives bool) *guillotine {
	return &guillotine{at: at, arrives: arrives, fell: make(chan struct{})}
}

func (g *guillotine) dial(ctx context.Context, network, address string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return nil, errDead
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	g.conns = append(g.conns, conn)
	return &doomedConn{Conn: conn, guillotine: g}, nil
}

type doomedConn struct {
	net.Conn
	guillotine *guillotine
}

func (c *doomedConn) Write(b []byte) (int, error) {
	g := c.guillotine
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dead {
		return 0, errDead
	}
	if g.writes++; g.writes < g.at {
		return c.Conn.Write(b)
	}
	g.dead = true
	if g.arrives {
		_, _ = c.Conn.Write(b)
	}
	for _, conn := range g.conns {
		// What was sent still arrives, as when a process ends, and its own reads fail.
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	}
	close(g.fell)
	return 0, errDead
}

func (c *doomedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.guillotine.mu.Lock()
	defer c.guillotine.mu.Unlock()
	if c.guillotine.dead {
		return 0, errDead
	}
	return n, err
}

func (c *doomedConn) SetDeadline(t time.Time) error { return c.unlessDead(c.Conn.SetDeadline, t) }

func (c *doomedConn) SetReadDeadline(t time.Time) error {
	return c.unlessDead(c.Conn.SetReadDeadline, t)
}

func (c *doomedConn) SetWriteDeadline(t time.Time) error {
	return c.unlessDead(c.Conn.SetWriteDeadline, t)
}

func (c *doomedConn) unlessDead(set func(time.Time) error, t time.Time) error {
	c.guillotine.mu.Lock()
	defer c.guillotine.mu.Unlock()
	if c.guillotine.dead {
		return errDead
	}
	return set(t)
}

// TestRelayKilledAnywhere kills a relay at its first write, at its second, and so on
// until it gets through with its work, each time once before the write has left and
// once before the answer has come. Another relay takes over. In the end a
// read_committed reader has seen every event once and in order.
func TestRelayKilledAnywhere(t *testing.T) {
	const rows = 10 // of two keys: five batches
	w := newWorld(t)
	one, two := "key", sibling("key", "other")
	w.onlyShard(t, outbox.Shard(one))
	var (
		wg     sync.WaitGroup
		events int
		points int
	)
	defer wg.Wait()
	cfg := w.config()
	cfg.BatchSize, cfg.TransactionTimeout, cfg.Lease = 4, 2*time.Second, 2*time.Second
	survived := false
	for at := 1; !survived; at++ {
		for _, arrives := range []bool{false, true} {
			for range rows {
				w.append(t, message(one, events), message(two, events))
				events++
			}
			g := newGuillotine(at, arrives)
			if !w.runDoomed(t, &wg, cfg, g) {
				survived = true
				break
			}
			points++
			w.exec(t, `UPDATE millrace.relay_shards SET owner = NULL WHERE shard = $1`, outbox.Shard(one)) // rather than wait for the lease
			stop := w.startWith(t, cfg)
			w.awaitEmpty(t)
			stop()
		}
	}
	if points < 40 {
		t.Errorf("only %d points at which to kill the relay", points)
	}
	t.Logf("killed at %d points", points)
	checkOrder(t, w.read(t, 2*events), events)
}

// runDoomed runs a relay until it is killed, and reports whether it was: else it has
// published everything.
func (w *world) runDoomed(t *testing.T, wg *sync.WaitGroup, cfg outbox.RelayConfig, g *guillotine) bool {
	t.Helper()
	poolConfig, err := pgxpool.ParseConfig(w.pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	poolConfig.ConnConfig.DialFunc = g.dial
	pool, err := pgxpool.NewWithConfig(t.Context(), poolConfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Pool = pool
	cfg.Kafka = append([]kgo.Opt{kgo.Dialer(g.dial)}, w.kafka...)
	r, err := outbox.NewRelay(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	wg.Go(func() {
		defer pool.Close()
		done <- r.Run(ctx)
	})
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		select {
		case <-g.fell:
			return true
		case <-limit:
			t.Fatalf("neither killed at write %d nor through", g.at)
		case <-tick.C:
		}
		if w.count(t, `SELECT count(*) FROM millrace.outbox`) == 0 {
			cancel()
			if err := <-done; err != nil {
				t.Error(fmt.Errorf("relay: %w", err))
			}
			return false
		}
	}
}
