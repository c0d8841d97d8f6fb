package embedded

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that children run as when this process is root, because
// PostgreSQL refuses root. A nil account means: as this process.
type account struct {
	name     string
	uid, gid uint32
}

// accountNames are tried in order. PostgreSQL's initdb looks its user up by
// name, so a number that no entry of the user database has will not do.
var accountNames = []string{"postgres", "nobody", "daemon"}

// childAccount returns nil for a normal user.
func childAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range accountNames {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil && uid != 0 {
			return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("this is root, PostgreSQL refuses to run as root, and the machine has none of the users %s to run it as: start as a normal user",
		strings.Join(accountNames, ", "))
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// unreachableError says which directory keeps an account from a path.
type unreachableError struct {
	account, path, at string
	mode              os.FileMode
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("%s: user %s cannot enter %s (mode %04o)", e.path, e.account, e.at, e.mode.Perm())
}

// reaches returns an [unreachableError] when the account cannot enter path, a
// directory without symbolic links in it.
func (a *account) reaches(path string) error {
	if a == nil {
		return nil
	}
	var dirs []string
	for p := path; ; p = filepath.Dir(p) {
		dirs = append(dirs, p)
		if p == filepath.Dir(p) {
			break
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		info, err := os.Stat(dirs[i])
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no owner known of " + dirs[i])
		}
		var may os.FileMode
		switch {
		case st.Uid == a.uid:
			may = 0o100
		case st.Gid == a.gid:
			may = 0o010
		default:
			may = 0o001
		}
		if info.Mode().Perm()&may == 0 {
			return &unreachableError{account: a.name, path: path, at: dirs[i], mode: info.Mode()}
		}
	}
	return nil
}
