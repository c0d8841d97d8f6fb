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
	return func(ctx context.Context) (float64, error) {
		args := append([]string{"bench", "engine", "--json", "--only", name, "--slots", strconv.Itoa(slots)}, m.args...)
		out, err := output(ctx, m.services.environ, m.binary, args...)
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
			if r.Name == "engine."+name {
				return r.Value, nil
			}
		}
		return 0, errors.Join(fmt.Errorf("no figure engine.%s", name), err)
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
