package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settlePostmaster deals with what an earlier server left in its data directory.
// This process holds the lock of the data directory, and of the server's folder
// when that is outside of it, so a server that still runs on it is
// an orphan on its way out: it is told to end and waited for. A file that names
// a process which is something else by now is removed; the server itself would
// refuse to start on it.
func settlePostmaster(ctx context.Context, data string) error {
	name := filepath.Join(data, "postmaster.pid")
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return dirError(data, err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		return removeStale(name)
	}
	cwd, known := workingDir(pid)
	if !known {
		return nil // the server decides; it knows an ended process when it sees one
	}
	if cwd != data {
		return removeStale(name)
	}
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("an earlier server, process %d, still runs on %s: stop it: %w", pid, data, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		if cwd, _ := workingDir(pid); cwd != data {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("an earlier server, process %d, still runs on %s and does not end: %w", pid, data, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

func removeStale(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale %s: %w", name, err)
	}
	return nil
}

// workingDir tells where a process is: a PostgreSQL server is in its data
// directory. An ended process is nowhere. Not known means that this system does
// not say.
func workingDir(pid int) (dir string, known bool) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	if _, err := os.Stat("/proc/self/cwd"); err != nil {
		return "", false
	}
	dir, err := os.Readlink(filepath.Join(proc, "cwd"))
	switch {
	case err == nil:
		return dir, true
	case errors.Is(err, fs.ErrNotExist):
		return "", true
	}
	return "", !errors.Is(err, fs.ErrPermission)
}
