//go:build integration

package embedded

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func startServices(t *testing.T, cfg Config) *Services {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, line := range s.Describe() {
		t.Log(line)
	}
	return s
}

func query[T any](t *testing.T, url, sql string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func TestServicesInATemporaryDirectoryLeaveNothing(t *testing.T) {
	s := startServices(t, Config{NoDownload: true})
	if got := query[string](t, s.Postgres.URL(), "SELECT current_setting('server_encoding') || ' ' || current_setting('fsync')"); got != "UTF8 off" {
		t.Errorf("settings %q, want UTF8 off", got)
	}
	path, pid := s.Dir.Path(), s.Postgres.server.cmd.Process.Pid
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if !gone(pid) {
		t.Error("the server is still there")
	}
}

func TestDataDirectorySurvivesARestart(t *testing.T) {
	path := testDataDir(t)
	s := startServices(t, Config{Dir: DirConfig{Path: path}, NoDownload: true})
	if got := query[string](t, s.Postgres.URL(), "SHOW fsync"); got != "on" {
		t.Errorf("fsync is %s for data that is kept", got)
	}
	query[int](t, s.Postgres.URL(), "WITH t AS (SELECT 1) SELECT * FROM t")
	if _, err := execSQL(t, s.Postgres.URL(), "CREATE TABLE kept AS SELECT 42 AS n"); err != nil {
		t.Fatal(err)
	}
	url, kafka := s.Postgres.URL(), s.Kafka.Addr()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = startServices(t, Config{Dir: DirConfig{Path: path}, NoDownload: true})
	if s.Postgres.URL() != url || s.Kafka.Addr() != kafka {
		t.Errorf("addresses changed: %s to %s, %s to %s", url, s.Postgres.URL(), kafka, s.Kafka.Addr())
	}
	if got := query[int](t, s.Postgres.URL(), "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d, want 42", got)
	}
}

// testDataDir is where the server's account can go, which a test's own
// directory need not be.
func testDataDir(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("", "millrace-test-") //nolint:usetesting // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	return filepath.Join(base, "data")
}

func execSQL(t *testing.T, url, sql string) (int64, error) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tag, err := conn.Exec(t.Context(), sql)
	return tag.RowsAffected(), err
}

func TestKilledServerEndsRunAndIsReplaced(t *testing.T) {
	path := testDataDir(t)
	s := startServices(t, Config{Dir: DirConfig{Path: path}, NoDownload: true})
	if _, err := execSQL(t, s.Postgres.URL(), "CREATE TABLE kept AS SELECT 42 AS n"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Postgres.server.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err := s.Run(ctx)
	var dead *ChildError
	if !errors.As(err, &dead) || dead.Name != postgresName || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("Run returned %v, want the server named as killed", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = startServices(t, Config{Dir: DirConfig{Path: path}, NoDownload: true})
	if got := query[int](t, s.Postgres.URL(), "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d after the kill, want 42", got)
	}
}

func TestServersEndWithAKilledProcess(t *testing.T) {
	path := testDataDir(t)
	parent := exec.CommandContext(t.Context(), os.Args[0])
	parent.Env = append(os.Environ(), helperEnv+"=services", "HELPER_DIR="+path)
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
		t.Fatalf("the process said %q", line)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	// At once, while the orphan may still be on its way out.
	s := startServices(t, Config{Dir: DirConfig{Path: path}, NoDownload: true})
	if !gone(pid) {
		t.Errorf("server %d outlives the process that started it", pid)
	}
	if got := query[int](t, s.Postgres.URL(), "SELECT 1"); got != 1 {
		t.Errorf("the next server answers %d", got)
	}
}

func TestRunEndsInGoodOrder(t *testing.T) {
	s := startServices(t, Config{NoDownload: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestDiskThatRunsFullEndsRun(t *testing.T) {
	s := startServices(t, Config{NoDownload: true})
	s.minFree = 1 << 62
	err := s.Run(t.Context())
	if !DiskFull(err) {
		t.Errorf("got %v, want a full disk", err)
	}
}

func TestDataOfAnotherVersionIsRefused(t *testing.T) {
	path := testDataDir(t)
	s := startServices(t, Config{Dir: DirConfig{Path: path}, NoDownload: true})
	version := filepath.Join(s.Postgres.data(), "PG_VERSION")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(version, []byte("11\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{Dir: DirConfig{Path: path}, NoDownload: true})
	if err == nil || !strings.Contains(err.Error(), "the data was made by PostgreSQL 11") {
		t.Errorf("got %v, want the version named", err)
	}
}

func TestFilesGoWhereTheServersAccountCanGo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("a normal user runs the server itself: nothing to move")
		return
	}
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(DirConfig{Path: filepath.Join(closed, "data"), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	base := testDataDir(t)
	at, err := d.place(postgresName, base)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(at.path, base) || at.note == "" || at.acct.reaches(at.path) != nil {
		t.Errorf("placed at %s (%s)", at.path, at.note)
	}
	again, err := d.place(postgresName, base)
	if err != nil || again.path != at.path {
		t.Errorf("placed at %s the second time, %v", again.path, err)
	}
	anew, err := OpenDir(DirConfig{Path: filepath.Join(closed, "anew"), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	if other, err := anew.place(postgresName, base); err != nil || other.path == at.path {
		t.Errorf("another directory is placed at %s, %v", other.path, err)
	}
	if err := anew.Close(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(at.path); err != nil {
		t.Fatal(err)
	}
	if _, err := d.place(postgresName, base); err == nil || !strings.Contains(err.Error(), "which is not there") {
		t.Errorf("files that are gone: %v", err)
	}
}
