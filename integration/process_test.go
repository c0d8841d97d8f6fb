//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// startPatience bounds how long a process may take until it is ready.
const startPatience = 45 * time.Second

// process is a millrace that runs. It ends with its test at the latest, and its
// log is printed when the test fails.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	log  string // file of both output streams
	// addr is where it serves HTTP, once it is ready.
	addr   string
	exited chan struct{}
}

// launch starts millrace in an empty directory with exactly this environment,
// beside what every program needs.
func launch(t testing.TB, name string, env []string, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	p := &process{t: t, name: name, log: filepath.Join(t.TempDir(), "log"), exited: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(binary, args...)
	p.cmd.Dir = dir
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A test binary that is killed takes its processes along.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the state tells how it ended
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		text := p.output()
		if bytes.Contains(text, []byte("WARNING: DATA RACE")) || bytes.Contains(text, []byte("\npanic: ")) {
			t.Errorf("%s raced or panicked", name)
		}
		if t.Failed() {
			t.Logf("%s (%v) said:\n%s", name, p.cmd.ProcessState, lastLines(text, 40<<10))
		}
	})
	return p
}

func lastLines(text []byte, most int) []byte {
	if len(text) <= most {
		return text
	}
	text = text[len(text)-most:]
	return append([]byte("…"), text[bytes.IndexByte(text, '\n')+1:]...)
}

func (p *process) output() []byte {
	text, err := os.ReadFile(p.log)
	if err != nil {
		p.t.Errorf("read the log of %s: %v", p.name, err)
	}
	return text
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	// Process.Signal knows when the process is gone, so that no other one that was
	// given its id since is hit.
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %v to %s: %v", s, p.name, err)
	}
}

// kill ends the process with SIGKILL and returns when it is gone.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// wait waits for the process to end by itself and returns its exit code.
func (p *process) wait(patience time.Duration) int {
	p.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	select {
	case <-p.exited:
	case <-limit.C:
		p.t.Fatalf("%s is still running after %s", p.name, patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// terminate ends the process with SIGTERM, which must go well.
func (p *process) terminate() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.wait(40 * time.Second); code != 0 {
		p.t.Errorf("%s ended with code %d after SIGTERM", p.name, code)
	}
}

// says waits until the output holds a match and returns its groups.
func (p *process) says(pattern string, patience time.Duration) [][]byte {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	var found [][]byte
	eventually(p.t, patience, fmt.Sprintf("%s says %q", p.name, pattern), func() error {
		ended := !p.running()
		if found = re.FindSubmatch(p.output()); found != nil {
			return nil
		}
		if ended {
			p.t.Fatalf("%s ended (%v) before it said %q", p.name, p.cmd.ProcessState, pattern)
		}
		return errors.New("not yet")
	})
	return found
}

var startedLine = regexp.MustCompile(`(?m)^\{.*"message":"started"\}$`)

// started reports whether the process has said that it has, and notes where.
func (p *process) started() bool {
	line := startedLine.Find(p.output())
	if line == nil {
		return false
	}
	var started struct {
		Addr string `json:"addr"`
	}
	if err := json.Unmarshal(line, &started); err != nil || started.Addr == "" {
		p.t.Fatalf("%s started on no address: %s", p.name, line)
	}
	p.addr = started.Addr
	return true
}

// ready waits until the process has started and /readyz agrees.
func (p *process) ready() *process {
	p.t.Helper()
	p.says(startedLine.String(), startPatience)
	p.started()
	p.awaitReadyz()
	return p
}

func (p *process) awaitReadyz() {
	p.t.Helper()
	eventually(p.t, startPatience, p.name+" is ready", func() error {
		if !p.running() {
			p.t.Fatalf("%s ended (%v) before it was ready", p.name, p.cmd.ProcessState)
		}
		return get("http://"+p.addr+"/readyz", http.StatusOK, nil)
	})
}

func (p *process) url() string { return "http://" + p.addr }

// eventually asks until done returns nil. When patience is over, the test fails
// with what done said last.
func eventually(t testing.TB, patience time.Duration, what string, done func() error) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-limit.C:
			t.Fatalf("waited %s until %s: %v", patience, what, err)
		case <-t.Context().Done():
			t.Fatalf("the test ended before %s: %v", what, err)
		case <-tick.C:
		}
	}
}
