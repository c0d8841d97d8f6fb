package embedded

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// outsideDir opens a data directory that claims a folder outside.
func outsideDir(t *testing.T, path, folder string) (*Dir, error) {
	t.Helper()
	d, err := OpenDir(DirConfig{Path: path, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.claim(folder, filepath.Join(path, "postgres.location")); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func closeDir(t *testing.T, d *Dir) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func copyOf(t *testing.T, path, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
}

func TestCopiedDirectoryDoesNotShareAFolderOutside(t *testing.T) {
	base := t.TempDir()
	original, copied, folder := filepath.Join(base, "d"), filepath.Join(base, "d2"), filepath.Join(base, "postgres-1")
	d, err := outsideDir(t, original, folder)
	if err != nil {
		t.Fatal(err)
	}
	copyOf(t, original, copied)
	if _, err := outsideDir(t, copied, folder); err == nil || !strings.Contains(err.Error(), "is a copy of "+original) {
		t.Errorf("while the original is open: %v", err)
	}
	closeDir(t, d)
	if _, err := outsideDir(t, copied, folder); err == nil || !strings.Contains(err.Error(), "or delete "+filepath.Join(copied, "postgres.location")) {
		t.Errorf("after the original has closed: %v", err)
	}
	if d, err = outsideDir(t, original, folder); err != nil {
		t.Fatalf("the original itself: %v", err)
	}
	closeDir(t, d)
}

func TestMovedDirectoryKeepsItsFolderOutside(t *testing.T) {
	base := t.TempDir()
	original, moved, folder := filepath.Join(base, "d"), filepath.Join(base, "d2"), filepath.Join(base, "postgres-1")
	d, err := outsideDir(t, original, folder)
	if err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	if err := os.Rename(original, moved); err != nil {
		t.Fatal(err)
	}
	if d, err = outsideDir(t, moved, folder); err != nil {
		t.Fatal(err)
	}
	defer closeDir(t, d)
	copyOf(t, moved, original)
	if _, err := outsideDir(t, original, folder); err == nil || !strings.Contains(err.Error(), "is a copy of "+moved) {
		t.Errorf("a copy at the old path: %v", err)
	}
}

func TestFolderOutsideOfAnotherDirectoryIsRefused(t *testing.T) {
	base := t.TempDir()
	folder := filepath.Join(base, "postgres-1")
	d, err := outsideDir(t, filepath.Join(base, "d"), folder)
	if err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
	if _, err := outsideDir(t, filepath.Join(base, "other"), folder); err == nil || !strings.Contains(err.Error(), "belongs to data directory "+filepath.Join(base, "d")) {
		t.Errorf("got %v", err)
	}
}

func TestFolderOutsideIsLocked(t *testing.T) {
	base := t.TempDir()
	folder := filepath.Join(base, "postgres-1")
	lock, err := lockPath(folder+outsideLock, folder)
	if err != nil {
		t.Fatal(err)
	}
	_, err = outsideDir(t, filepath.Join(base, "d"), folder)
	var used *DirInUseError
	if !errors.As(err, &used) || used.PID != os.Getpid() {
		t.Errorf("got %v", err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	d, err := outsideDir(t, filepath.Join(base, "d"), folder)
	if err != nil {
		t.Fatal(err)
	}
	closeDir(t, d)
}

func TestMissingPasswordNamesTheDatabaseToDelete(t *testing.T) {
	p := &Postgres{cfg: PostgresConfig{Dir: openTestDir(t)}, at: place{path: "/where/it/is"}}
	if err := p.readPassword(true); err == nil || !strings.Contains(err.Error(), "delete /where/it/is/data") {
		t.Errorf("got %v", err)
	}
	if err := p.readPassword(false); err != nil || p.password == "" {
		t.Errorf("of a new database: %q, %v", p.password, err)
	}
}
