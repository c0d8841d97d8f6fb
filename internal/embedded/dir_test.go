package embedded

import (
	"bufio"
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestTemporaryDirectoryIsRemovedAtTheEnd(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	d, err := OpenDir(DirConfig{MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path(), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestKeptDirectoryRemembersPorts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	d, err := OpenDir(DirConfig{Path: path, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.rememberPort("redis", 6379); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, err = OpenDir(DirConfig{Path: path, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	if got := d.port("redis"); got != 6379 {
		t.Errorf("port %d, want 6379", got)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSecondProcessIsToldWhoHoldsTheDirectory(t *testing.T) {
	path := t.TempDir()
	holder := exec.CommandContext(t.Context(), os.Args[0])
	holder.Env = append(os.Environ(), helperEnv+"=hold", "HELPER_DIR="+path)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}

	_, err = OpenDir(DirConfig{Path: path, MinFree: -1})
	var used *DirInUseError
	if !errors.As(err, &used) || strconv.Itoa(used.PID) != strings.TrimSpace(line) {
		t.Errorf("got %v, want the directory in use by process %s", err, strings.TrimSpace(line))
	}

	if err := errors.Join(in.Close(), holder.Wait()); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(DirConfig{Path: path, MinFree: -1})
	if err != nil {
		t.Fatalf("after the holder has ended: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestUnusableDirectoriesAreRefused(t *testing.T) {
	base := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := map[string]struct {
		path string
		want string
	}{
		"a file":          {write("file", ""), "file where a directory is needed"},
		"under a file":    {write("file", "") + "/dir", "file where a directory is needed"},
		"other things":    {filepath.Dir(write("home/letter.txt", "")), "holds other things (letter.txt)"},
		"a newer format":  {filepath.Dir(write("newer/"+dirFile, `{"format":99}`)), "format 99"},
		"a damaged file":  {filepath.Dir(write("damaged/"+dirFile, `{`)), "is damaged"},
		"nowhere to make": {"/proc/millrace", "data directory /proc/millrace"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := OpenDir(DirConfig{Path: test.path, MinFree: -1})
			if err == nil {
				t.Fatal(errors.Join(errors.New("it was opened"), d.Close()))
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q in it", err, test.want)
			}
		})
	}
}

func TestFullDiskIsRefusedWithFoundAndNeeded(t *testing.T) {
	base := t.TempDir()
	_, err := OpenDir(DirConfig{Path: filepath.Join(base, "a", "b"), MinFree: math.MaxInt64})
	var full *DiskFullError
	if !errors.As(err, &full) || full.Needed != math.MaxInt64 || full.Free == 0 {
		t.Errorf("got %v, want what is free and what is needed", err)
	}
	if !strings.Contains(err.Error(), "too little disk space") || !strings.Contains(err.Error(), "MiB free") {
		t.Errorf("%q does not say how much is free", err)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("it left %v behind, %v", left, err)
	}
}

func TestDiskFullIsRecognised(t *testing.T) {
	tests := map[string]struct {
		err  error
		want bool
	}{
		"a failed write":        {&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, true},
		"a spent quota":         {syscall.EDQUOT, true},
		"postgres says so":      {&pgconn.PgError{Code: "53100"}, true},
		"a child's last words":  {&ChildError{Name: "postgres", Log: []string{"PANIC: could not write: No space left on device"}}, true},
		"too little from start": {&DiskFullError{}, true},
		"another failed write":  {&fs.PathError{Op: "write", Path: "x", Err: syscall.EIO}, false},
		"another pg error":      {&pgconn.PgError{Code: "53300"}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := DiskFull(test.err); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestAbandonedTemporaryDirectoriesAreRemoved(t *testing.T) {
	base := t.TempDir()
	old := time.Now().Add(-time.Hour)
	dir := func(name string, files ...string) string {
		path := filepath.Join(base, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(path, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		return path
	}
	abandoned := dir(tempPrefix+"1", dirFile, lockFile)
	foreign := dir(tempPrefix+"2", "letter.txt")
	other := dir("project", dirFile, lockFile)
	t.Setenv("TMPDIR", base)
	held := openTestDir(t)
	if err := os.Chtimes(held.Path(), old, old); err != nil {
		t.Fatal(err)
	}

	removeAbandoned(base)

	if _, err := os.Stat(abandoned); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the abandoned directory is still there: %v", err)
	}
	for _, path := range []string{foreign, other, held.Path()} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("removed what it should not: %v", err)
		}
	}
}

func TestAccountReachesOnlyWhatItMayEnter(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(base, "closed", "inside")
	if err := os.MkdirAll(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	stranger := &account{name: "stranger", uid: 54321, gid: 54321}
	var blocked *unreachableError
	if err := stranger.reaches(inside); !errors.As(err, &blocked) {
		t.Errorf("got %v, want the directory that is closed", err)
	}
	if err := stranger.reaches("/"); err != nil {
		t.Errorf("the root directory: %v", err)
	}
	me := &account{name: "me", uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
	if err := me.reaches(inside); err != nil {
		t.Errorf("my own directory: %v", err)
	}
}
