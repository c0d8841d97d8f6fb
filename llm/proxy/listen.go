package proxy

import (
	"context"
	"fmt"
	"net"
)

// CheckAddr reports whether an address, host:port, is one that the proxy may
// listen on: a loopback address, or localhost.
func CheckAddr(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("proxy address %q: want host:port", addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("proxy address %q: want a loopback address such as 127.0.0.1, "+
			"for whoever reaches the proxy can spend the account's money", addr)
	}
	return nil
}

// Listen listens on a loopback address and refuses all others.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	if err := CheckAddr(addr); err != nil {
		return nil, err
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	// A name may resolve to anything.
	if tcp, ok := l.Addr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		_ = l.Close()
		return nil, fmt.Errorf("proxy address %q: it resolves to %s, which is not loopback", addr, l.Addr())
	}
	return l, nil
}
