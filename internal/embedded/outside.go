package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
)

// A folder outside the data directory has two files beside it, where only root
// can write: a lock, since a copy of the data directory has a lock of its own
// but points to the same folder, and the folder's owner, by which the copy is
// told from the original.
const (
	outsideLock  = ".lock"
	outsideOwner = ".owner"
)

// outsideInfo says which data directory a folder outside belongs to.
type outsideInfo struct {
	// Owner is the data directory's id, which a copy of it has as well.
	Owner string `json:"owner"`
	// Directory is where the data directory was last.
	Directory string `json:"data_directory"`
}

// newOwner returns an id for a data directory.
func newOwner() string { return rand.Text() }

// claim makes a folder outside this data directory's for as long as the
// directory is open. pointer is the file that names the folder.
func (d *Dir) claim(path, pointer string) error {
	if d.outside[path] != nil {
		return nil
	}
	// The owner first: of a copy and its original it says more than the lock.
	if err := d.refuseOthers(path, pointer); err != nil {
		return err
	}
	lock, err := lockPath(path+outsideLock, path)
	if err != nil {
		return err
	}
	// Again, now that nobody else can change it.
	err = d.refuseOthers(path, pointer)
	if err == nil {
		err = writeJSON(path+outsideOwner, outsideInfo{Owner: d.info.Owner, Directory: d.path})
	}
	if err != nil {
		return errors.Join(err, lock.Unlock())
	}
	if d.outside == nil {
		d.outside = make(map[string]*flock.Flock)
	}
	d.outside[path] = lock
	return nil
}

// refuseOthers returns an error when the folder is another data directory's. One
// that has moved keeps its folder; one that is a copy, while the original is
// there, does not get it.
func (d *Dir) refuseOthers(path, pointer string) error {
	var held outsideInfo
	b, err := os.ReadFile(path + outsideOwner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &held)
	}
	if err != nil {
		return fmt.Errorf("owner of %s: %w", path, err)
	}
	switch {
	case held.Owner != d.info.Owner:
		return fmt.Errorf("data directory %s: %s names %s, which belongs to data directory %s: delete %s to begin with an empty database here",
			d.path, pointer, path, held.Directory, pointer)
	case held.Directory != d.path && ownerIn(held.Directory) == held.Owner:
		return fmt.Errorf("data directory %s is a copy of %s, whose database is outside of it, in %s, and was not copied: delete the copy, or delete %s to give it an empty database",
			d.path, held.Directory, path, pointer)
	}
	return nil
}

// ownerIn returns the id of a data directory; empty when there is none.
func ownerIn(dir string) string {
	var info dirInfo
	b, err := os.ReadFile(filepath.Join(dir, dirFile))
	if err != nil || json.Unmarshal(b, &info) != nil {
		return ""
	}
	return info.Owner
}

// lockPath locks a file that stands for a directory.
func lockPath(name, dir string) (*flock.Flock, error) {
	lock := flock.New(name, flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, dirError(dir, err)
	}
	if !locked {
		pid := 0
		if b, err := os.ReadFile(name); err == nil {
			pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return nil, &DirInUseError{Path: dir, PID: pid}
	}
	// The lock itself is the kernel's; the pid is only for whoever is refused.
	if err := os.WriteFile(name, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return nil, errors.Join(dirError(dir, err), lock.Unlock())
	}
	return lock, nil
}

// writeJSON replaces a file as a whole.
func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.WriteFile(name+".tmp", append(b, '\n'), 0o600); err != nil {
		return dirError(filepath.Dir(name), err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return dirError(filepath.Dir(name), err)
	}
	return nil
}
