package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// childConfig says how to run a program as a child of this process.
type childConfig struct {
	name string
	path string
	args []string
	dir  string
	env  []string
	// stdin is fed to the program; nil means none.
	stdin io.Reader
	// account runs it when this process is root; nil means as this process.
	account *account
	// stop is the signal that asks the program to end in good order.
	stop syscall.Signal
	// stopWithin is how long that may take before the program is killed.
	stopWithin time.Duration
	logger     zerolog.Logger
}

// child is a running program.
type child struct {
	cfg  childConfig
	cmd  *exec.Cmd
	tail *logTail
	done chan struct{}
	err  error // how it ended; valid once done is closed
}

// childEnv is what children see of this process's environment: nothing that
// would redirect them, such as PGDATA or LD_PRELOAD of this process.
func childEnv(home string) []string {
	env := []string{"LC_ALL=C", "TZ=UTC", "HOME=" + home}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// startChild starts a program. The kernel sends it its stop signal when this
// process dies.
func startChild(cfg childConfig) (*child, error) {
	c := &child{cfg: cfg, tail: newLogTail(cfg.logger.With().Str("service", cfg.name).Logger()), done: make(chan struct{})}
	c.cmd = exec.Command(cfg.path, cfg.args...) //nolint:gosec,noctx // the program was looked up by this package; it is stopped by stop
	c.cmd.Dir, c.cmd.Env, c.cmd.Stdin = cfg.dir, cfg.env, cfg.stdin
	c.cmd.Stdout, c.cmd.Stderr = c.tail, c.tail
	// Grandchildren may hold the output open after the program itself has ended.
	c.cmd.WaitDelay = 2 * time.Second
	c.cmd.SysProcAttr = childAttributes(cfg.account, cfg.stop)

	started := make(chan error, 1)
	go func() {
		// The kernel takes the death of the thread that started the child for the
		// death of the parent, so that thread belongs to this goroutine for as long
		// as the child runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := c.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		err := c.cmd.Wait()
		c.tail.flush()
		c.err = c.ended(err)
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s (%s): %w", cfg.name, cfg.path, explainStart(err, cfg.account))
	}
	return c, nil
}

func explainStart(err error, acct *account) error {
	if acct != nil && (errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL)) {
		return fmt.Errorf("root may not switch to user %s here (a container without that right, or a user namespace that lacks it): %w", acct.name, err)
	}
	return err
}

// ended describes how the program ended, for whoever did not ask it to.
func (c *child) ended(err error) error {
	how := "it ended"
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		how = "it ended with " + exit.String()
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		how = err.Error()
	}
	return &ChildError{Name: c.cfg.name, How: how, Log: c.tail.lines()}
}

// ChildError says that a child process ended without being asked to, or while
// it was starting.
type ChildError struct {
	Name string
	// How it ended.
	How string
	// Log holds the last lines that it wrote.
	Log []string
}

func (e *ChildError) Error() string {
	s := e.Name + ": " + e.How
	if len(e.Log) > 0 {
		// The cause last, where it is read.
		s = "the last words of " + e.Name + ":\n  " + strings.Join(e.Log, "\n  ") + "\n" + s
	}
	return s
}

// Unwrap tells a full disk from the words of the program.
func (e *ChildError) Unwrap() error {
	for _, line := range e.Log {
		if strings.Contains(line, noSpace) {
			return syscall.ENOSPC
		}
	}
	return nil
}

// noSpace is the C library's text for ENOSPC, in the C locale.
const noSpace = "No space left on device"

// close asks the program to end and kills it when it takes too long.
func (c *child) close() error {
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(c.cfg.stop); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.cfg.name, err)
	}
	timer := time.NewTimer(c.cfg.stopWithin)
	defer timer.Stop()
	select {
	case <-c.done:
		return nil
	case <-timer.C:
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", c.cfg.name, err)
	}
	<-c.done
	return fmt.Errorf("stop %s: it did not end within %s and was killed", c.cfg.name, c.cfg.stopWithin)
}

// runChild runs a program to its end and returns what it wrote, with the error
// when it failed.
func runChild(ctx context.Context, cfg childConfig) ([]string, error) {
	c, err := startChild(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("%s: %w", cfg.name, context.Cause(ctx)), c.close())
	}
	if !c.cmd.ProcessState.Success() {
		return nil, c.err
	}
	return c.tail.lines(), nil
}

// tailLines is how many lines of a child are kept for its obituary.
const tailLines = 12

// logTail keeps the last lines that a child wrote and passes all on to the log
// at debug level.
type logTail struct {
	logger zerolog.Logger

	mu   sync.Mutex
	part strings.Builder
	last []string
}

func newLogTail(logger zerolog.Logger) *logTail { return &logTail{logger: logger} }

// maxLine bounds the memory that a child which never ends a line can take.
const maxLine = 4096

func (t *logTail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for rest := b; len(rest) > 0; {
		advance, line, _ := bufio.ScanLines(rest, false)
		if advance == 0 {
			t.part.Write(rest[:min(len(rest), maxLine)])
			if t.part.Len() >= maxLine {
				t.add()
			}
			break
		}
		t.part.Write(line[:min(len(line), maxLine)])
		t.add()
		rest = rest[advance:]
	}
	return len(b), nil
}

func (t *logTail) add() {
	line := t.part.String()
	t.part.Reset()
	if line == "" {
		return
	}
	t.logger.Debug().Msg(line)
	t.last = append(t.last, line)
	if extra := len(t.last) - tailLines; extra > 0 {
		t.last = append(t.last[:0], t.last[extra:]...)
	}
}

func (t *logTail) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add()
}

func (t *logTail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.last...)
}
