package embedded

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// DefaultMinFree is the free space that must be there before the services
	// start: PostgreSQL takes 40 MB empty and up to 512 MB of log under load.
	DefaultMinFree = 512 << 20
	// stopFree is the free space under which running services are stopped.
	stopFree = 48 << 20
)

// DiskFullError says that the services' file system has no room.
type DiskFullError struct {
	// Path is on the file system in question.
	Path string
	// Free and Needed are bytes. Needed is 0 when a write failed.
	Free, Needed uint64
	// Err is the failed write, if that is how it showed.
	Err error
}

func (e *DiskFullError) Error() string {
	if e.Needed > 0 {
		return fmt.Sprintf("too little disk space: %s has %s free, %s are needed", e.Path, mib(e.Free), mib(e.Needed))
	}
	s := fmt.Sprintf("the disk is full: %s has %s free", e.Path, mib(e.Free))
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the failed write.
func (e *DiskFullError) Unwrap() error { return e.Err }

func mib(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }

// CheckFree returns a [DiskFullError] when fewer than needed bytes are free on
// the file system of path. 0 means [DefaultMinFree], a negative number no check.
func CheckFree(path string, needed int64) error {
	if needed < 0 {
		return nil
	}
	if needed == 0 {
		needed = DefaultMinFree
	}
	free, err := freeSpace(path)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", path, err)
	}
	if want := uint64(needed); free < want {
		return &DiskFullError{Path: path, Free: free, Needed: want}
	}
	return nil
}

// sqlDiskFull is PostgreSQL's code for it.
const sqlDiskFull = "53100"

// DiskFull reports whether err comes from a full disk or a spent quota, here or
// in PostgreSQL.
func DiskFull(err error) bool {
	var full *DiskFullError
	var pg *pgconn.PgError
	return errors.As(err, &full) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		errors.As(err, &pg) && pg.Code == sqlDiskFull
}

// explainFull makes a failed write the plain error that it means.
func explainFull(path string, err error) error {
	free, statErr := freeSpace(path)
	if statErr != nil {
		return fmt.Errorf("the disk of %s is full: %w", path, err)
	}
	return &DiskFullError{Path: path, Free: free, Err: err}
}
