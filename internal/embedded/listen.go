package embedded

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// loopback is where embedded services listen unless told otherwise.
const loopback = "127.0.0.1"

// splitAddr reads an address that an embedded service may listen on. Empty
// means any free port on loopback.
func splitAddr(addr string) (host string, port int, err error) {
	if addr == "" {
		return loopback, 0, nil
	}
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: want host:port", addr)
	}
	if port, err = strconv.Atoi(text); err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("address %q: want a port from 0 to 65535", addr)
	}
	ip := net.ParseIP(host)
	if host == "localhost" {
		ip = net.ParseIP(loopback)
	}
	// Kafka clients are told the address that the broker is bound to, and nothing
	// embedded asks for a password that a network could be trusted with.
	if ip == nil || !ip.IsLoopback() {
		return "", 0, fmt.Errorf("address %q: embedded services listen on loopback addresses only, such as 127.0.0.1", addr)
	}
	return ip.String(), port, nil
}

// listen binds the address. Without a port in it, the port that was used last
// is tried first, then any free one.
func listen(service, addr string, last int) (net.Listener, error) {
	host, port, err := splitAddr(addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", service, err)
	}
	if port == 0 && last != 0 {
		if ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(last))); err == nil { //nolint:noctx // binding does not wait
			return ln, nil
		}
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port))) //nolint:noctx // binding does not wait
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: port %d on %s is taken by another program: %w", service, port, host, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s: port %d on %s is not for normal users: %w", service, port, host, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", service, err)
	}
	return ln, nil
}

// portTries bounds how often another port is tried when one that was free is
// taken before the service has bound it.
const portTries = 5

// onFreePort starts a service that binds its port itself, on a port that was free
// a moment ago. A port that the operator named is tried once.
func onFreePort(service, addr string, last int, start func(host string, port int) error) (port int, err error) {
	for range portTries {
		var host string
		if host, port, err = freePort(service, addr, last); err != nil {
			return 0, err
		}
		if err = start(host, port); err == nil {
			return port, nil
		}
		if _, named, splitErr := splitAddr(addr); splitErr != nil || named != 0 || !portTaken(err) {
			return 0, err
		}
		last = 0
	}
	return 0, err
}

// portTaken recognises a taken port in an error of this process or in the last
// words of a child.
func portTaken(err error) bool {
	var dead *ChildError
	if errors.As(err, &dead) {
		return slices.ContainsFunc(dead.Log, func(line string) bool { return strings.Contains(line, "Address already in use") })
	}
	return errors.Is(err, syscall.EADDRINUSE)
}

func freePort(service, addr string, last int) (host string, port int, err error) {
	ln, err := listen(service, addr, last)
	if err != nil {
		return "", 0, err
	}
	tcp, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return "", 0, fmt.Errorf("%s: no port in %s", service, ln.Addr())
	}
	if err := ln.Close(); err != nil {
		return "", 0, fmt.Errorf("%s: %w", service, err)
	}
	return tcp.IP.String(), tcp.Port, nil
}
