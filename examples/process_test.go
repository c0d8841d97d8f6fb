//go:build integration

package examples_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

// patience is how long anything may take that is expected to happen.
const patience = time.Minute

// needTools fails the test when a program that the examples need is missing.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Errorf("%s is missing: run make test-deps, or install it (%v)", name, err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// buildMillrace builds the binary, once for all tests, and returns its path.
func buildMillrace(t *testing.T) string {
	t.Helper()
	path, err := millraceOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var millraceOnce = sync.OnceValues(func() (string, error) {
	folder, err := os.MkdirTemp("", "millrace-examples-")
	if err != nil {
		return "", err
	}
	atEnd = func() { _ = os.RemoveAll(folder) } // a temporary folder's fate is nobody's failure
	path := filepath.Join(folder, "millrace")
	if out, err := exec.Command("go", "build", "-o", path, "../cmd/millrace").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build millrace: %w\n%s", err, out)
	}
	return path, nil
})

// buildGo builds a command of this module and returns its path.
func buildGo(t *testing.T, folder string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(folder))
	runOnce(t, exec.CommandContext(t.Context(), "go", "build", "-o", path, folder))
	return path
}

// runOnce runs a command to its end and returns what it printed.
func runOnce(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var out, diagnostics bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, &out, &diagnostics)
	}
	return out.Bytes()
}

// environ returns the environment for an example: this process's, less what
// would lead it elsewhere, and the given variables.
func environ(vars map[string]string) []string {
	own := regexp.MustCompile(`^(MILLRACE_|LLM_|OPENAI_|ANTHROPIC_|PORT=|GOFLAGS=)|^(?i:(http|https|all)_proxy)=`)
	var env []string
	for _, entry := range os.Environ() {
		if !own.MatchString(entry) {
			env = append(env, entry)
		}
	}
	for name, value := range vars {
		env = append(env, name+"="+value)
	}
	return env
}

// process is a program that runs beside the test.
type process struct {
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
	err  error
}

// start starts a program, and stops it at the end of the test with a signal.
func start(t *testing.T, stop os.Signal, vars map[string]string, path string, args ...string) *process {
	t.Helper()
	p := &process{
		name: filepath.Base(path), out: &output{changed: make(chan struct{}, 1)}, done: make(chan struct{}),
		cmd: exec.Command(path, args...), // ends with the test, by a signal
	}
	p.cmd.Env = environ(vars)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.stop(t, stop)
		if t.Failed() {
			t.Logf("output of %s:\n%s", p.name, p.out)
		}
	})
	return p
}

func (p *process) stop(t *testing.T, signal os.Signal) {
	_ = p.cmd.Process.Signal(signal) // it may have ended by itself
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Errorf("%s does not stop", p.name)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == signal {
			return // it does not handle the signal
		}
	}
	if p.err != nil {
		t.Errorf("%s: %v", p.name, p.err)
	}
}

// await returns the first group of a pattern once the program has printed it.
func (p *process) await(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	over := time.NewTimer(patience)
	defer over.Stop()
	for ended := false; ; {
		if found := re.FindStringSubmatch(p.out.String()); found != nil {
			return found[len(found)-1]
		}
		if ended {
			t.Fatalf("%s has ended without printing %q: %v", p.name, pattern, p.err)
		}
		select {
		case <-p.out.changed:
		case <-p.done:
			ended = true
		case <-over.C:
			t.Fatalf("%s has not printed %q", p.name, pattern)
		}
	}
}

// output collects what a process prints and tells of it.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// pythonWithPackages returns an interpreter that has the pinned packages, in an
// environment that is kept in the user's cache.
func pythonWithPackages(t *testing.T) string {
	t.Helper()
	requirements, err := os.ReadFile("python/requirements.txt")
	if err != nil {
		t.Fatal(err)
	}
	version := runOnce(t, exec.CommandContext(t.Context(), "python3", "-c", "import sys; print(sys.version, sys.prefix)"))
	cache, err := os.UserCacheDir() // XDG_CACHE_HOME or ~/.cache
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(append(version, requirements...))
	folder := filepath.Join(cache, "millrace", "python-"+hex.EncodeToString(hash[:8]))
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	lock := flock.New(folder + ".lock")
	if ok, err := lock.TryLockContext(ctx, 100*time.Millisecond); !ok {
		t.Fatalf("lock %s: %v", lock.Path(), err)
	}
	defer lock.Unlock() //nolint:errcheck // ends with the process at the latest
	python := filepath.Join(folder, "bin", "python")
	complete := filepath.Join(folder, "complete")
	if _, err := os.Stat(complete); err == nil {
		return python
	}
	for _, args := range [][]string{
		{"python3", "-m", "venv", "--clear", folder},
		{python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "python/requirements.txt"},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\nmake test-deps installs what it needs\n%s", args, err, out)
		}
	}
	if err := os.WriteFile(complete, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return python
}

// copyFolder copies a folder of sources to where a build may write.
func copyFolder(t *testing.T, folder string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(folder))
	if err := os.CopyFS(to, os.DirFS(folder)); err != nil {
		t.Fatal(fmt.Errorf("copy %s: %w", folder, err))
	}
	return to
}
