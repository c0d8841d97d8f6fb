package testenv

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// freePort finds a port of 127.0.0.1 that nobody listens on, below the ephemeral range. A client that keeps dialling the port of a
// stopped server could otherwise be given that very port as its source, connect to itself, and keep the server from coming back.
func freePort(ctx context.Context) (int, error) {
	const lowest, highest = 20000, 32000
	var errs []error
	for range 20 {
		port := lowest + rand.IntN(highest-lowest) //nolint:gosec // no secret
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, listener.Close()
		}
		errs = append(errs, err)
	}
	return 0, fmt.Errorf("find a free port: %w", errors.Join(errs...))
}
