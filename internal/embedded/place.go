package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// elsewhere is where a child keeps its files when its account cannot enter the
// data directory, as in /root.
const elsewhere = "/var/lib/millrace"

// place is where a child keeps its files and who it runs as.
type place struct {
	path string
	acct *account
	// note says why the files are not in the data directory; empty when they are.
	note string
}

// place finds, or makes, the folder of a child's service. When the data
// directory is in a place that the account cannot enter, the folder is made
// under base and a pointer to it is left in the data directory.
func (d *Dir) place(service, base string) (place, error) {
	inside := filepath.Join(d.path, service)
	if d.account == nil {
		if err := ownedBy(inside, os.Geteuid()); err != nil {
			return place{}, err
		}
		path, err := d.sub(service, nil)
		return place{path: path}, err
	}
	acct := d.account
	pointer := filepath.Join(d.path, service+".location")
	if b, err := os.ReadFile(pointer); err == nil {
		return d.pointed(service, strings.TrimSpace(string(b)), pointer)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return place{}, dirError(d.path, err)
	}
	if owner, ok := ownerOf(inside); ok {
		acct = owner // made by an earlier run, of a normal user perhaps
	}
	blocked := acct.reaches(d.path)
	if blocked == nil {
		path, err := d.sub(service, acct)
		return place{path: path, acct: acct}, err
	}
	if _, err := os.Stat(inside); err == nil {
		return place{}, fmt.Errorf("data directory %s: %w", d.path, blocked)
	}
	if err := makePassable(base); err != nil {
		return place{}, errors.Join(blocked, dirError(base, err))
	}
	// A random name: a directory that was removed and made anew under its old path
	// is another one, and has nothing to do with the old files.
	path, err := os.MkdirTemp(base, service+"-")
	if err != nil {
		return place{}, errors.Join(blocked, dirError(base, err))
	}
	if err := makeOwned(path, acct); err != nil {
		return place{}, errors.Join(blocked, dirError(path, err))
	}
	if err := d.claim(path, pointer); err != nil {
		return place{}, err
	}
	if err := os.WriteFile(pointer, []byte(path+"\n"), 0o600); err != nil {
		return place{}, dirError(d.path, err)
	}
	return place{path: path, acct: acct, note: blocked.Error()}, nil
}

func (d *Dir) pointed(service, path, pointer string) (place, error) {
	acct, ok := ownerOf(path)
	if !ok {
		return place{}, fmt.Errorf("data directory %s: %s says that the files of %s are in %s, which is not there: bring it back, or delete %s to begin with an empty database",
			d.path, pointer, service, path, pointer)
	}
	if err := d.claim(path, pointer); err != nil {
		return place{}, err
	}
	return place{path: path, acct: acct, note: "as " + pointer + " says"}, acct.reaches(path)
}

// makePassable makes a folder that other accounts can pass through whatever the
// umask. One that is there already is left as it is.
func makePassable(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // what is inside guards itself
		return err
	}
	return os.Chmod(path, 0o755) //nolint:gosec // see above
}

// ownerOf returns the account that owns a folder, unless that is root or one
// without a name.
func ownerOf(path string) (*account, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil, false
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(st.Uid), 10))
	if err != nil {
		return nil, false
	}
	return &account{name: u.Username, uid: st.Uid, gid: st.Gid}, true
}

// ownedBy refuses a folder of another user: the service could not read it.
func ownedBy(path string, uid int) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return dirError(path, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != uid {
		return fmt.Errorf("%s belongs to user %d, this is user %s: run as that user, or as root", path, st.Uid, userName())
	}
	return nil
}
