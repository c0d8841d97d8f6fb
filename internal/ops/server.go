package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Server serves HTTP until it is told to stop.
type Server struct {
	// Handler answers requests. Required.
	Handler http.Handler
	// DrainTimeout is how long requests may go on after the stop. Default 10 s.
	DrainTimeout time.Duration
	// WriteTimeout bounds the time from the end of a request's head to the end of
	// its answer. 0 is no bound: answers may wait for a task or stream.
	WriteTimeout time.Duration
	// ReadTimeout bounds the time for reading a whole request. Default 1 minute.
	ReadTimeout time.Duration
}

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// Listen opens addr. variable is the setting that names it, for the error of a
// taken port.
func Listen(ctx context.Context, addr, variable string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("address %s is in use: set %s or stop the other process", addr, variable)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("address %s needs rights that this process does not have: set %s to a port above 1023", addr, variable)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("address %s is not one of this machine: set %s", addr, variable)
	}
	return nil, fmt.Errorf("listen on %s (%s): %w", addr, variable, err)
}

// Serve answers requests on l, which it closes, until ctx ends. Then it takes no
// more, lets those under way finish, and returns nil; those that outlive the
// drain timeout are cut off, which is an error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if s.Handler == nil {
		return errors.Join(errors.New("http server: Handler is missing"), l.Close())
	}
	// Requests may outlive ctx: they end on their own, or with the drain.
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := &http.Server{
		Handler:           s.Handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       orDefault(s.ReadTimeout, time.Minute),
		WriteTimeout:      s.WriteTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drain, stop := context.WithTimeout(context.WithoutCancel(ctx), orDefault(s.DrainTimeout, 10*time.Second))
	defer stop()
	err := server.Shutdown(drain)
	if err != nil {
		cancel()
		err = fmt.Errorf("stop http on %s: requests cut off: %w", l.Addr(), errors.Join(err, server.Close()))
	}
	<-served //nolint:errcheck // always http.ErrServerClosed after a stop
	return err
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return fallback
}
