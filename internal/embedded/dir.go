package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
)

// dirFormat is the version of the layout of a data directory. A change that an
// older program would misread raises it.
const dirFormat = 1

const (
	dirFile    = "millrace.json"
	lockFile   = "lock"
	tempPrefix = "millrace-up-"
)

// DirConfig says where the embedded services keep their files.
type DirConfig struct {
	// Path is the data directory, made when it is missing. Empty means a temporary
	// directory that Close removes.
	Path string
	// MinFree is how many bytes must be free on its file system. 0 means
	// [DefaultMinFree], a negative number means no check.
	MinFree int64
}

// Dir is an open data directory. One process at a time holds it.
type Dir struct {
	path string
	temp bool
	lock *flock.Flock
	// outside are the locks of folders outside that belong to the directory.
	outside map[string]*flock.Flock
	// account runs the children that refuse to run as root; nil for a normal user.
	account *account

	mu   sync.Mutex
	info dirInfo
}

type dirInfo struct {
	Format  int       `json:"format"`
	Created time.Time `json:"created"`
	// Owner is a random id. Folders outside that belong to the directory have it
	// as well.
	Owner string `json:"owner"`
	// Ports are where the services listened last, so that addresses stay the same
	// across restarts when nobody has taken them in between.
	Ports map[string]int `json:"ports"`
	// KafkaClosed is set while the broker is at rest after an orderly stop.
	KafkaClosed bool `json:"kafka_closed"`
}

// DirInUseError says that another process holds the data directory.
type DirInUseError struct {
	Path string
	// PID is the other process; 0 when it is not known.
	PID int
}

func (e *DirInUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("data directory %s is in use by another millrace", e.Path)
	}
	return fmt.Sprintf("data directory %s is in use by another millrace, process %d", e.Path, e.PID)
}

// OpenDir makes and locks the data directory. It refuses a directory that holds
// other things, one of a newer format, one that another process holds
// ([DirInUseError]) and one on a full disk ([DiskFullError]).
func OpenDir(cfg DirConfig) (*Dir, error) {
	acct, err := childAccount()
	if err != nil {
		return nil, err
	}
	d := &Dir{account: acct, temp: cfg.Path == ""}
	var made []string
	if d.temp {
		d.path, err = makeTemp(acct)
	} else {
		made = missing(cfg.Path)
		d.path, err = makeDir(cfg.Path, acct)
	}
	if err == nil {
		err = d.open(cfg.MinFree)
	}
	switch {
	case err != nil && d.temp && d.path != "":
		return nil, errors.Join(err, os.RemoveAll(d.path))
	case err != nil:
		removeMade(made)
		return nil, err
	}
	return d, nil
}

// missing lists the directories of a path that are not there, innermost first.
func missing(path string) []string {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	var dirs []string
	for ; path != filepath.Dir(path); path = filepath.Dir(path) {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		dirs = append(dirs, path)
	}
	return dirs
}

// removeMade removes directories that were made for nothing. One that holds
// more than an open of it leaves is kept.
func removeMade(dirs []string) {
	if len(dirs) > 0 {
		_ = os.Remove(filepath.Join(dirs[0], lockFile))
	}
	for _, dir := range dirs {
		if os.Remove(dir) != nil {
			return
		}
	}
}

func (d *Dir) open(minFree int64) error {
	if err := d.refuseForeign(); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	if err := CheckFree(d.path, minFree); err != nil {
		return errors.Join(err, d.lock.Unlock())
	}
	if err := d.load(); err != nil {
		return errors.Join(err, d.lock.Unlock())
	}
	return nil
}

func makeDir(path string, acct *account) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("data directory %s: %w", path, err)
	}
	mode := fs.FileMode(0o700)
	if acct != nil {
		mode = 0o711 // the children's account has to pass through to its own folder
	}
	_, err = os.Stat(path)
	isNew := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(path, mode); err != nil {
		return "", dirError(path, err)
	}
	if isNew {
		if err := os.Chmod(path, mode); err != nil { // the umask may have narrowed it
			return "", dirError(path, err)
		}
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", dirError(path, err)
	}
	return path, nil
}

// dirError puts what went wrong with a data directory in plain words.
func dirError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("data directory %s: user %s may not write there: %w", path, userName(), err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("data directory %s: the file system is read-only: %w", path, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		return fmt.Errorf("data directory %s: there is a file where a directory is needed: %w", path, err)
	case DiskFull(err):
		return explainFull(path, err)
	}
	return fmt.Errorf("data directory %s: %w", path, err)
}

// refuseForeign keeps the services from strewing files into a directory that
// holds something else.
func (d *Dir) refuseForeign() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return dirError(d.path, err)
	}
	foreign := ""
	for _, e := range entries {
		switch e.Name() {
		case dirFile:
			return nil
		case lockFile, dirFile + ".tmp", "lost+found":
		default:
			foreign = e.Name()
		}
	}
	if foreign != "" {
		return fmt.Errorf("data directory %s: it holds other things (%s) and no %s; name an empty or a new directory", d.path, foreign, dirFile)
	}
	return nil
}

func (d *Dir) takeLock() (err error) {
	d.lock, err = lockPath(filepath.Join(d.path, lockFile), d.path)
	return err
}

func (d *Dir) load() error {
	b, err := os.ReadFile(filepath.Join(d.path, dirFile))
	if errors.Is(err, fs.ErrNotExist) {
		d.info = dirInfo{Format: dirFormat, Created: time.Now().UTC().Truncate(time.Second), Owner: newOwner(), Ports: map[string]int{}}
		return d.save()
	}
	if err != nil {
		return dirError(d.path, err)
	}
	if err := json.Unmarshal(b, &d.info); err != nil {
		return fmt.Errorf("data directory %s: %s is damaged: %w", d.path, dirFile, err)
	}
	if d.info.Format != dirFormat {
		return fmt.Errorf("data directory %s: format %d, this program knows format %d", d.path, d.info.Format, dirFormat)
	}
	if d.info.Ports == nil {
		d.info.Ports = map[string]int{}
	}
	if d.info.Owner == "" {
		d.info.Owner = newOwner()
		return d.save()
	}
	return nil
}

func (d *Dir) save() error { return writeJSON(filepath.Join(d.path, dirFile), d.info) }

// Path returns the directory's absolute path.
func (d *Dir) Path() string { return d.path }

// Temporary reports whether Close removes the directory.
func (d *Dir) Temporary() bool { return d.temp }

// Describe says what the directory is, in a line.
func (d *Dir) Describe() string {
	if d.temp {
		return "data in " + d.path + ", removed at the end"
	}
	return "data in " + d.path + ", kept"
}

// port returns where the service listened last, 0 when that is not known.
func (d *Dir) port(service string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info.Ports[service]
}

func (d *Dir) rememberPort(service string, port int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.info.Ports[service] == port {
		return nil
	}
	d.info.Ports[service] = port
	return d.save()
}

// kafkaClosed reports whether the broker stopped in good order last time.
func (d *Dir) kafkaClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info.KafkaClosed
}

func (d *Dir) kafkaStarts(port int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info.KafkaClosed, d.info.Ports[kafkaName] = false, port
	return d.save()
}

func (d *Dir) kafkaStopped() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info.KafkaClosed = true
	return d.save()
}

// sub makes a folder of the directory that only its owner can enter: this
// process's user, or acct when it is given.
func (d *Dir) sub(name string, acct *account) (string, error) {
	path := filepath.Join(d.path, name)
	if err := makeOwned(path, acct); err != nil {
		return "", dirError(path, err)
	}
	return path, nil
}

func makeOwned(path string, acct *account) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	if acct == nil {
		return nil
	}
	return os.Chown(path, int(acct.uid), int(acct.gid))
}

// Close releases the directory, and removes it when it is temporary. All that
// uses it must have stopped.
func (d *Dir) Close() error {
	var err error
	if d.temp {
		err = os.RemoveAll(d.path)
	}
	for _, lock := range d.outside {
		err = errors.Join(err, lock.Unlock())
	}
	if err := errors.Join(err, d.lock.Unlock()); err != nil {
		return fmt.Errorf("close data directory %s: %w", d.path, err)
	}
	return nil
}

// makeTemp makes a temporary data directory where the children's account can
// go, and removes those that killed processes left behind.
func makeTemp(acct *account) (string, error) {
	bases := []string{os.TempDir()}
	if acct != nil {
		bases = append(bases, "/tmp", "/var/tmp")
	}
	var errs []error
	for _, base := range bases {
		real, err := filepath.EvalSymlinks(base)
		if err == nil {
			err = acct.reaches(real)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		removeAbandoned(real)
		path, err := os.MkdirTemp(real, tempPrefix)
		if err != nil {
			errs = append(errs, dirError(real, err))
			continue
		}
		if acct != nil {
			if err := os.Chmod(path, 0o711); err != nil { //nolint:gosec // the account passes through, its own folder is 0700
				return "", dirError(path, err)
			}
		}
		return path, nil
	}
	return "", fmt.Errorf("no place for a temporary data directory: %w", errors.Join(errs...))
}

// abandonedAge keeps a directory that is just being made, and not yet locked,
// from looking abandoned.
const abandonedAge = time.Minute

func removeAbandoned(base string) {
	paths, err := filepath.Glob(filepath.Join(base, tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || !ownedByMe(info) || time.Since(info.ModTime()) < abandonedAge {
			continue
		}
		if _, err := os.Lstat(filepath.Join(path, dirFile)); err != nil {
			continue
		}
		lock := flock.New(filepath.Join(path, lockFile))
		if locked, err := lock.TryLock(); err != nil || !locked {
			continue
		}
		// What cannot be removed costs space, not correctness.
		_ = os.RemoveAll(path)
		_ = lock.Unlock()
	}
}
