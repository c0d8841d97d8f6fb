package app

import (
	"context"
	"errors"
	"net"
	"net/http"

	"millrace/internal/ops"
)

// front is the HTTP address of a process: health, metrics and what its role
// adds.
type front struct {
	process  *Process
	listener net.Listener
	mux      *http.ServeMux
	role     string
}

// listen opens the address first, so that a taken one is known before anything
// else starts.
func listen(ctx context.Context, p *Process, role string) (*front, error) {
	l, err := ops.Listen(ctx, p.Settings.HTTPAddr, "MILLRACE_HTTP_ADDR")
	if err != nil {
		return nil, err
	}
	p.Host, p.Addr = advertised(ctx, p, l.Addr().String())
	f := &front{process: p, listener: l, mux: http.NewServeMux(), role: role}
	p.Health.Handle(f.mux)
	ops.HandleMetrics(f.mux, p.Registry)
	return f, nil
}

var (
	errStarting = errors.New("still connecting to the services")
	errStopping = errors.New("told to stop")
)

// whileStarting serves health from the first moment on, not ready, while start
// connects to the services; then it runs what start returned, until ctx ends.
func (f *front) whileStarting(ctx context.Context, start func(context.Context) (part, func(), error)) error {
	started := make(chan struct{})
	f.unreadyOnceStopped(ctx)
	f.process.Health.Ready("start", func(context.Context) error {
		select {
		case <-started:
			return nil
		default:
			return errStarting
		}
	})
	return runParts(ctx, part{"http", f.serve}, part{f.role, func(ctx context.Context) error {
		main, release, err := start(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil // told to stop while starting
			}
			return err
		}
		defer release()
		close(started)
		f.process.Log.Info().Str("role", f.role).Str("addr", f.listener.Addr().String()).Msg("started")
		return main.run(ctx)
	}})
}

// unreadyOnceStopped makes the process not ready when ctx ends, however long the
// parts take to finish: nothing should be sent to it any more.
func (f *front) unreadyOnceStopped(ctx context.Context) {
	f.process.Health.Ready("process", func(context.Context) error {
		if ctx.Err() != nil {
			return errStopping
		}
		return nil
	})
}

func (f *front) serve(ctx context.Context) error {
	server := ops.Server{Handler: f.mux}
	return server.Serve(ctx, f.listener)
}
