package embedded

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func startHelper(t *testing.T, run string) *child {
	t.Helper()
	c, err := startChild(childConfig{
		name: "helper", path: os.Args[0], env: []string{helperEnv + "=" + run},
		stop: syscall.SIGTERM, stopWithin: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDeadChildIsNamedWithItsLastWords(t *testing.T) {
	c := startHelper(t, "die")
	<-c.done
	var dead *ChildError
	if !errors.As(c.err, &dead) || dead.Name != "helper" || !strings.Contains(dead.How, "exit status 3") {
		t.Fatalf("got %v, want the child's name and exit status", c.err)
	}
	if !slices.Contains(dead.Log, "first words") {
		t.Errorf("log %q lacks what the child wrote", dead.Log)
	}
	if !DiskFull(c.err) {
		t.Errorf("%v does not say that the disk is full", c.err)
	}
	if err := c.close(); err != nil {
		t.Errorf("close after the end: %v", err)
	}
}

func TestClosedChildIsGone(t *testing.T) {
	c := startHelper(t, "sleep")
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(c.cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the process is still there: %v", err)
	}
}

func TestChildThatDoesNotStopIsKilled(t *testing.T) {
	c, err := startChild(childConfig{
		name: "stubborn", path: "/bin/sh", args: []string{"-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"},
		env: childEnv("/"), stop: syscall.SIGTERM, stopWithin: 100 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(c.tail.lines()) > 0 })
	if err := c.close(); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("got %v, want the kill reported", err)
	}
	<-c.done
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not come to that")
		case <-ticker.C:
		}
	}
}

func TestChildDoesNotOutliveAKilledParent(t *testing.T) {
	parent := exec.CommandContext(t.Context(), os.Args[0])
	parent.Env = append(os.Environ(), helperEnv+"=parent")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the parent said %q", line)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	waitFor(t, func() bool { return gone(pid) })
}

// gone reports whether a process has ended; one that nobody has waited for yet
// has.
func gone(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

func TestMissingProgramIsAPlainError(t *testing.T) {
	_, err := startChild(childConfig{name: "ghost", path: "/nowhere/ghost"})
	if err == nil || !strings.Contains(err.Error(), "start ghost (/nowhere/ghost)") {
		t.Errorf("got %v", err)
	}
}

func TestLogTailKeepsTheLastLines(t *testing.T) {
	tail := newLogTail(zerolog.Nop())
	for i := range 2 * tailLines {
		for _, part := range []string{"line ", strconv.Itoa(i), "\n"} {
			if _, err := tail.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := tail.Write([]byte(strings.Repeat("x", 10*maxLine))); err != nil {
		t.Fatal(err)
	}
	if _, err := tail.Write([]byte("\r\n\nunfinished")); err != nil {
		t.Fatal(err)
	}
	tail.flush()
	got := tail.lines()
	if len(got) != tailLines || got[0] != "line "+strconv.Itoa(tailLines+2) || got[len(got)-1] != "unfinished" {
		t.Errorf("got %d lines from %q to %q", len(got), got[0], got[len(got)-1])
	}
	if n := len(got[len(got)-2]); n > maxLine {
		t.Errorf("a line of %d bytes was kept", n)
	}
}
