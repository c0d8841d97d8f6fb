package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"millrace/internal/logging"
	"millrace/internal/settings"
)

// Exit codes.
const (
	exitFailed      = 1
	exitInvalid     = 2
	exitInterrupted = 128 + int(syscall.SIGINT)
)

// cli is what commands see of the process that they run in.
type cli struct {
	in      io.Reader
	out     io.Writer
	err     io.Writer
	environ []string
	exit    func(code int)

	started bool // arguments and flags were all right
	serves  bool // to be stopped is how it ends, and no interruption
}

// makers make the commands. Each command's file registers its own.
var makers []func(*cli) *cobra.Command

func register(maker func(*cli) *cobra.Command) { makers = append(makers, maker) }

// usageError is a wrong call: of flags, of arguments.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "millrace",
		Short: "Run AI-agent tasks at scale on Kafka",
		Long: `Millrace takes tasks in, sorts them by priority, and lets any number of
identical workers run them: one at a time and in order within a conversation.

Settings come from the environment, with the prefix MILLRACE_; flags say what
one call does. "millrace config" lists the settings.

Exit codes: 0 done, 1 failed, 2 wrong settings or a wrong call, 130 interrupted.
What serves until it is stopped ends with 0 when it is.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	for _, maker := range makers {
		root.AddCommand(maker(c))
	}
	c.noteStart(root)
	return root
}

// noteStart has every command below parent note that it was called rightly:
// Cobra has checked arguments, flags and groups of flags by then.
func (c *cli) noteStart(parent *cobra.Command) {
	for _, command := range parent.Commands() {
		c.noteStart(command)
		if do := command.RunE; do != nil {
			command.RunE = func(command *cobra.Command, args []string) error {
				c.started = true
				return do(command, args)
			}
		}
	}
}

// run runs the command that args name and returns the exit code.
func run(c *cli, args []string) int {
	ctx, stop := c.untilSignal(context.Background())
	defer stop()
	root := newRoot(c)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if c.interrupted(ctx, err) {
		return exitInterrupted
	}
	c.complain("%v", err)
	var (
		invalid *settings.InvalidError
		wrong   usageError
	)
	switch {
	case errors.As(err, &wrong) || !c.started:
		_, _ = fmt.Fprintf(c.err, "Run '%s --help' for usage.\n", command.CommandPath())
		return exitInvalid
	case errors.As(err, &invalid):
		return exitInvalid
	}
	return exitFailed
}

// interruption is what ends the context of a command that is told to stop.
type interruption struct{}

func (interruption) Error() string { return "interrupted" }

// Is makes it what a context without a cause would say.
func (interruption) Is(target error) bool { return target == context.Canceled }

// interrupted reports whether a command ended because it was told to, and says
// so. What libraries make of an ended context reads like a failure, so it is
// told only where the command has found words for it.
func (c *cli) interrupted(ctx context.Context, err error) bool {
	if ctx.Err() == nil || c.serves || !stoppedBy(err) {
		return false
	}
	told := interruption{}
	if !errors.As(err, &told) {
		err = told
	}
	c.complain("%v", err)
	return true
}

// stoppedBy reports whether err follows from an ended context: it says so, or
// a program was killed, for Ctrl-C reaches the programs that a command runs too.
func stoppedBy(err error) bool {
	var program *exec.ExitError
	if errors.As(err, &program) {
		status, ok := program.Sys().(syscall.WaitStatus)
		return ok && status.Signaled()
	}
	return errors.Is(err, context.Canceled)
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. The
// second one ends the process at once.
func (c *cli) untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for first := true; ; first = false {
			select {
			case s := <-signals:
				if !first {
					c.exit(128 + int(s.(syscall.Signal)))
					return
				}
				cancel(interruption{})
			case <-over:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(over)
		<-done
		cancel(nil)
	}
}

// complain writes a line about what went wrong. When that fails as well, nobody
// is left to tell.
func (c *cli) complain(format string, args ...any) {
	_, _ = fmt.Fprintf(c.err, "millrace: "+format+"\n", args...)
}

// settings reads the settings of a process in the given role.
func (c *cli) settings(role settings.Role) (settings.Settings, error) {
	return settings.Load(c.environ, role)
}

// flushTimeout is how long the last log lines may take on the way out.
const flushTimeout = 2 * time.Second

// logger returns the logger of a process, which writes to standard error, and
// what flushes it: to be called last.
func (c *cli) logger(s *settings.Settings, metrics prometheus.Registerer) (zerolog.Logger, func(), error) {
	log, w, err := logging.New(logging.Config{
		Out: c.err, Level: s.LogLevel, Format: s.LogFormat, Color: isTerminal(c.err), Metrics: metrics,
	})
	if err != nil {
		return log, nil, err
	}
	return log, func() {
		ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
		defer cancel()
		if err := w.Close(ctx); err != nil {
			c.complain("%v", err)
		}
	}, nil
}

func isTerminal(w any) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// width returns the columns of the terminal behind w, or 0.
func width(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return columns
}
