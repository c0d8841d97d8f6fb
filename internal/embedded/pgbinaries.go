package embedded

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
	"github.com/rs/zerolog"
)

// minPostgres is the oldest major version that Millrace runs on.
const minPostgres = 14

// pgBinaries are the programs of one PostgreSQL version.
type pgBinaries struct {
	dir     string
	version string // such as 15.14
	major   int
}

// pgDownloads are the versions that can be downloaded, newest first.
var pgDownloads = []embeddedpostgres.PostgresVersion{
	embeddedpostgres.V18, embeddedpostgres.V17, embeddedpostgres.V16, embeddedpostgres.V15, embeddedpostgres.V14,
}

// debianPostgres is where Debian and Ubuntu keep one folder a version.
const debianPostgres = "/usr/lib/postgresql/*/bin"

// pgSearch finds PostgreSQL's programs.
type pgSearch struct {
	// binDir is the operator's choice; empty means to look for them.
	binDir string
	// debian is the pattern of Debian's folders.
	debian string
	// cacheDir keeps downloads; empty means that nothing is downloaded.
	cacheDir string
	acct     *account
	logger   zerolog.Logger
}

// find returns programs that can run a data directory of the major version
// want; 0 means a new one, for which the first that is found will do.
func (s pgSearch) find(ctx context.Context, want int) (pgBinaries, error) {
	var refused []string
	for _, dir := range s.candidates() {
		b, err := s.inspect(ctx, dir)
		switch {
		case ctx.Err() != nil:
			return pgBinaries{}, ctx.Err() // it cuts programs short, which says nothing about them
		case err != nil:
			refused = append(refused, err.Error())
		case want != 0 && b.major != want:
			refused = append(refused, fmt.Sprintf("%s is version %s", dir, b.version))
		default:
			return b, nil
		}
	}
	if s.binDir == "" && s.cacheDir != "" {
		b, err := s.download(ctx, want)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return pgBinaries{}, ctx.Err()
		}
		refused = append(refused, "download: "+err.Error())
	}
	what := fmt.Sprintf("no PostgreSQL of version %d or later", minPostgres)
	if want != 0 {
		what = fmt.Sprintf("the data was made by PostgreSQL %d, and there is no PostgreSQL %d", want, want)
	}
	if len(refused) > 0 {
		what += " (" + strings.Join(refused, "; ") + ")"
	}
	return pgBinaries{}, errors.New(what + "; install one, such as with apt-get install postgresql, or give the address of one that runs")
}

// candidates lists folders that may hold the programs, best first.
func (s pgSearch) candidates() []string {
	if s.binDir != "" {
		return []string{s.binDir}
	}
	dirs, _ := filepath.Glob(s.debian) // the pattern is a constant
	slices.SortFunc(dirs, func(a, b string) int { return debianMajor(b) - debianMajor(a) })
	for _, name := range []string{"postgres", "initdb"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		// Both may be links from one folder into different ones, or to a wrapper: the
		// programs find their libraries next to where they really are.
		if path, err = filepath.EvalSymlinks(path); err == nil {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	return slices.Compact(dirs)
}

func debianMajor(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

var pgVersion = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspect asks the programs of a folder for their version.
func (s pgSearch) inspect(ctx context.Context, dir string) (pgBinaries, error) {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return pgBinaries{}, fmt.Errorf("%s has no %s", dir, name)
		}
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return pgBinaries{}, err
	}
	if err := s.acct.reaches(real); err != nil {
		return pgBinaries{}, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output() //nolint:gosec // found above
	m := pgVersion.FindSubmatch(out)
	if err != nil || m == nil {
		return pgBinaries{}, errors.Join(fmt.Errorf("%s does not tell its version", filepath.Join(dir, "postgres")), err)
	}
	major, err := strconv.Atoi(string(m[2]))
	if err != nil || major < minPostgres {
		return pgBinaries{}, fmt.Errorf("%s is version %s, at least %d is needed", dir, m[1], minPostgres)
	}
	return pgBinaries{dir: dir, version: string(m[1]), major: major}, nil
}

// download fetches the programs once and keeps them in the cache.
func (s pgSearch) download(ctx context.Context, want int) (pgBinaries, error) {
	version := pgDownloads[0]
	if want != 0 {
		i := slices.IndexFunc(pgDownloads, func(v embeddedpostgres.PostgresVersion) bool {
			return strings.HasPrefix(string(v), strconv.Itoa(want)+".")
		})
		if i < 0 {
			return pgBinaries{}, fmt.Errorf("version %d is not offered", want)
		}
		version = pgDownloads[i]
	}
	home := filepath.Join(s.cacheDir, "postgres-"+string(version))
	bin := filepath.Join(home, "bin")
	if b, err := s.inspect(ctx, bin); err == nil {
		return b, nil
	}
	if err := CheckFree(existing(s.cacheDir), 0); err != nil {
		return pgBinaries{}, err
	}
	s.logger.Info().Str("version", string(version)).Str("to", home).Msg("downloading PostgreSQL, once")
	if err := makePassable(s.cacheDir); err != nil {
		return pgBinaries{}, dirError(s.cacheDir, err)
	}
	work, err := os.MkdirTemp(s.cacheDir, "download-")
	if err != nil {
		return pgBinaries{}, dirError(s.cacheDir, err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // what stays costs space only
	if err := fetchPostgres(ctx, work, version); err != nil {
		return pgBinaries{}, err
	}
	http.DefaultClient.CloseIdleConnections() // the library's, of no more use
	fresh := filepath.Join(work, "pg")
	if err := makeReadable(fresh); err != nil {
		return pgBinaries{}, err
	}
	// A folder under its final name is complete: the rename is what makes it so.
	if err := os.RemoveAll(home); err != nil {
		return pgBinaries{}, err
	}
	if err := os.Rename(fresh, home); err != nil {
		return pgBinaries{}, err
	}
	return s.inspect(ctx, bin)
}

func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// fetchPostgres has the library download and unpack the programs into work/pg.
// The library can only do so on the way to starting a server of its own, which
// it cannot do as root and which is not wanted here; an encoding that no server
// knows ends its start right after, so its error says nothing.
func fetchPostgres(ctx context.Context, work string, version embeddedpostgres.PostgresVersion) error {
	var words logTail
	_, port, err := freePort("postgres", "", 0)
	if err != nil {
		return err
	}
	db := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(version).
		Port(uint32(port)). //nolint:gosec // a port
		CachePath(filepath.Join(work, "archive")).
		BinariesPath(filepath.Join(work, "pg")).
		RuntimePath(filepath.Join(work, "run")).
		DataPath(filepath.Join(work, "data")).
		Encoding("none").
		Logger(&words))
	ended := make(chan error, 1)
	go func() { ended <- db.Start() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		// The download itself cannot be told to stop; it ends with this process.
		return context.Cause(ctx)
	}
	if err == nil {
		err = db.Stop()
	}
	for _, name := range []string{"initdb", "postgres"} {
		if _, statErr := os.Stat(filepath.Join(work, "pg", "bin", name)); statErr != nil {
			return fmt.Errorf("%w (%w)", err, statErr)
		}
	}
	return nil
}

// makeReadable undoes what a narrow umask has done to unpacked programs.
func makeReadable(root string) error {
	return filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.Type()&os.ModeSymlink != 0 {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Perm() | 0o444
		if mode&0o100 != 0 {
			mode |= 0o111
		}
		return os.Chmod(path, mode) //nolint:gosec // nobody else can write there yet
	})
}
