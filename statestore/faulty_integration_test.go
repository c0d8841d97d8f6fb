//go:build integration

package statestore

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// budget says after how many bytes a connection is lost. Negative: never.
type budget struct {
	// Written and Read count what the client has sent and what it has been given.
	// Bytes beyond are lost with the connection, whether or not the other side has
	// sent them.
	Written, Read int64
}

var unlimited = budget{-1, -1}

// faults makes connections that break. Its DialFunc stands in a pool's
// configuration.
type faults struct {
	// dialled says what a new connection can bear. Nil: all.
	dialled func() budget
	// uncancelled keeps the client's requests to cancel from the server, as a network
	// does that has lost the connection.
	uncancelled bool

	cuts atomic.Int64

	mu    sync.Mutex
	conns map[*faultyConn]struct{}
}

// newFaultyPool returns a pool whose connections break as f says.
func newFaultyPool(t testing.TB, cfg *pgxpool.Config, f *faults, conns int32) *pgxpool.Pool {
	t.Helper()
	f.conns = make(map[*faultyConn]struct{})
	cfg.MaxConns = conns
	cfg.ConnConfig.DialFunc = f.dial
	return newPool(t, cfg)
}

func (f *faults) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &faultyConn{Conn: conn, faults: f, left: unlimited}
	if f.dialled != nil {
		c.left = f.dialled()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns[c] = struct{}{}
	return c, nil
}

// arm gives all connections that are open now a budget from here on.
func (f *faults) arm(b budget) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.mu.Lock()
		c.left = b
		c.mu.Unlock()
	}
}

// left returns what is left of the budget of the connection that has used most.
func (f *faults) left() budget {
	f.mu.Lock()
	defer f.mu.Unlock()
	least := unlimited
	for c := range f.conns {
		c.mu.Lock()
		if least == unlimited || c.left.Read+c.left.Written < least.Read+least.Written {
			least = c.left
		}
		c.mu.Unlock()
	}
	return least
}

// cut breaks all connections that are open now.
func (f *faults) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		f.cuts.Add(1)
		_ = c.Conn.Close()
	}
	clear(f.conns)
}

type faultyConn struct {
	net.Conn
	faults *faults

	mu   sync.Mutex
	left budget
}

func (c *faultyConn) Write(b []byte) (int, error) {
	if c.faults.uncancelled && isCancelRequest(b) {
		return len(b), c.Conn.Close()
	}
	n, lost := c.spend(&c.left.Written, len(b))
	if !lost {
		return c.Conn.Write(b)
	}
	n, err := c.Conn.Write(b[:n])
	c.lose()
	if err == nil {
		err = net.ErrClosed
	}
	return n, err
}

func (c *faultyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	kept, lost := c.spend(&c.left.Read, n)
	if !lost {
		return n, err
	}
	c.lose()
	if kept == 0 {
		return 0, net.ErrClosed
	}
	return kept, nil
}

// spend takes n bytes off a budget and returns how many of them it covers.
func (c *faultyConn) spend(left *int64, n int) (covered int, lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *left < 0 {
		return n, false
	}
	if int64(n) <= *left {
		*left -= int64(n)
		return n, false
	}
	n = int(*left)
	*left = 0
	return n, true
}

func (c *faultyConn) lose() {
	c.faults.cuts.Add(1)
	_ = c.Close()
}

func (c *faultyConn) Close() error {
	c.faults.mu.Lock()
	delete(c.faults.conns, c)
	c.faults.mu.Unlock()
	return c.Conn.Close()
}

// isCancelRequest recognises the message CancelRequest of PostgreSQL's protocol,
// which stands alone on a connection of its own.
func isCancelRequest(b []byte) bool {
	const code = 1234<<16 | 5678
	return len(b) >= 8 && binary.BigEndian.Uint32(b[4:]) == code
}
