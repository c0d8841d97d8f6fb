// Package worker is the way in for Go programs: [Main] turns a handler into a
// worker process.
//
//	func main() {
//		worker.Main(millrace.HandlerFunc(func(ctx context.Context, turn *millrace.Turn) error {
//			return turn.Result("hello")
//		}))
//	}
//
// The process takes its settings from the environment, like `millrace worker`,
// which lists them under `millrace config`. It serves /livez, /readyz and
// /metrics on MILLRACE_HTTP_ADDR, and on SIGINT or SIGTERM lets running turns
// finish for MILLRACE_DRAIN_TIMEOUT.
package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"millrace"
	"millrace/internal/app"
	"millrace/internal/logging"
	"millrace/internal/ops"
	"millrace/internal/settings"
	"millrace/llm"
)

// Main runs a worker with the given handler until the process is told to stop,
// and exits: with 0 after a clean stop, with 2 for wrong settings, with 1
// otherwise.
func Main(handler millrace.Handler) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the next one ends the process at once.
	context.AfterFunc(ctx, stop)
	if len(os.Args) > 1 {
		_, _ = fmt.Fprintf(os.Stderr, "%s: takes no arguments; settings come from the environment, with the prefix MILLRACE_\n", program())
		os.Exit(2) //nolint:forbidigo // see below
	}
	//nolint:forbidigo // this is the program's main, for programs that bring nothing but a handler
	os.Exit(exitCode(Run(ctx, handler, os.Environ(), os.Stderr), os.Stderr))
}

func exitCode(err error, out io.Writer) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(out, "%s: %v\n", program(), err)
	var invalid *settings.InvalidError
	if errors.As(err, &invalid) {
		return 2
	}
	return 1
}

// Run is Main for programs that bring their own context, environment (in the
// form of [os.Environ]) and log. It returns nil after a clean stop.
func Run(ctx context.Context, handler millrace.Handler, environ []string, out io.Writer) error {
	if handler == nil {
		return errors.New("the handler is nil")
	}
	s, err := settings.Load(environ, settings.RoleWorker)
	if err != nil {
		return err
	}
	registry := ops.NewRegistry(version())
	log, writer, err := logging.New(logging.Config{Out: out, Level: s.LogLevel, Format: s.LogFormat, Metrics: registry})
	if err != nil {
		return err
	}
	defer func() {
		// The last lines are written although ctx has ended.
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = writer.Close(flush) // there is nowhere left to say that it failed
	}()
	app.TuneMemory(log)
	stopTracing, err := app.StartTracing(ctx, "millrace-worker", log)
	if err != nil {
		return err
	}
	defer stopTracing()
	p, err := app.NewProcess(s, log, registry)
	if err != nil {
		return err
	}
	return app.RunWorker(ctx, p, handler)
}

// LLM returns the worker's LLM client: its calls keep the shared limits, and an
// answer that is journaled is not paid for twice. It is there in the context of
// every turn.
func LLM(ctx context.Context) *llm.Client { return app.LLM(ctx) }

func program() string { return filepath.Base(os.Args[0]) }

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
