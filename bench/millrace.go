package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	"millrace/internal/bench"
)

// millraceRuns measures the product's binary by its own command.
type millraceRuns struct {
	binary   string
	services services
	args     []string
}

// figure returns what measures "engine.<name>".
func (m millraceRuns) figure(name string, slots int) func(context.Context) (float64, error) {
	return m.measure("engine."+name, append([]string{"engine", "--only", name, "--slots", strconv.Itoa(slots)}, m.args...)...)
}

// outboxRate returns what measures "outbox.rate".
func (m millraceRuns) outboxRate(records int) func(context.Context) (float64, error) {
	return m.measure(outboxOurs, "outbox", "--only", "rate", "--records", strconv.Itoa(records))
}

// commitRate returns what measures "commit.turns".
func (m millraceRuns) commitRate(records int) func(context.Context) (float64, error) {
	return m.measure(commitOurs, "commit", "--only", "turns", "--records", strconv.Itoa(records))
}

// measure returns what runs a benchmark and picks one of its figures.
func (m millraceRuns) measure(figure string, args ...string) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		out, err := output(ctx, m.services.environ, m.binary, slices.Concat([]string{"bench"}, args, []string{"--json"})...)
		// A figure outside its bound is a figure all the same.
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			return 0, err
		}
		lines := bufio.NewScanner(bytes.NewReader(out))
		for lines.Scan() {
			var r bench.Result
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				return 0, fmt.Errorf("read result: %w", err)
			}
			if r.Name == figure {
				return r.Value, nil
			}
		}
		return 0, errors.Join(fmt.Errorf("no figure %s", figure), err)
	}
}

// output runs a program to its end and returns what it prints. When ctx ends the
// program is asked to stop and given time to clean up.
func output(ctx context.Context, environ []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Stderr = environ, os.Stderr
	// In a group of its own, so that a terminal's interrupt does not reach it as
	// well: two of them end a program at once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("run %s: %w", program, err)
	}
	return out, nil
}
