package embedded

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
)

const (
	postgresName = "postgres"
	// pgUser and pgDatabase are the one role and the one database.
	pgUser     = "millrace"
	pgDatabase = "millrace"
)

// PostgresConfig says how to run the embedded PostgreSQL.
type PostgresConfig struct {
	// Dir is the data directory; its folder "postgres" is the server's, unless the
	// server's account cannot go there.
	Dir *Dir
	// Addr is a loopback address. Empty or port 0: the port used last with this
	// data directory if it is free, else any.
	Addr string
	// BinDir holds initdb and postgres. Empty means to look for them: Debian's
	// newest, then PATH, then a download.
	BinDir string
	// CacheDir keeps downloaded programs. Empty means the user's cache directory,
	// for root /var/cache/millrace.
	CacheDir string
	// NoDownload makes a machine without PostgreSQL an error.
	NoDownload bool
	// Sync makes commits wait for the disk (fsync). Without it a power failure can
	// destroy the data.
	Sync bool
	// Logger gets the server's own lines, at debug level.
	Logger zerolog.Logger
}

// Postgres is a PostgreSQL server that runs as a child of this process: on
// loopback only, without a Unix socket, with a random password that is kept in
// the data directory.
type Postgres struct {
	cfg      PostgresConfig
	binaries pgBinaries
	at       place
	addr     string
	password string
	server   *child
	once     sync.Once
	err      error
}

// StartPostgres starts the server, on a data directory that it makes when there
// is none, and returns when it answers.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	if cfg.Dir == nil {
		return nil, errors.New("postgres: no data directory")
	}
	p := &Postgres{cfg: cfg}
	if err := p.start(ctx); err != nil {
		if DiskFull(err) {
			err = explainFull(cfg.Dir.Path(), err)
		}
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return p, nil
}

func (p *Postgres) start(ctx context.Context) error {
	var err error
	if p.at, err = p.cfg.Dir.place(postgresName, elsewhere); err != nil {
		return err
	}
	if p.at.note != "" {
		if err := CheckFree(p.at.path, 0); err != nil {
			return err
		}
	}
	major, err := dataVersion(p.data())
	if err != nil {
		return err
	}
	search := pgSearch{binDir: p.cfg.BinDir, debian: debianPostgres, acct: p.at.acct, logger: p.cfg.Logger}
	if !p.cfg.NoDownload {
		if search.cacheDir, err = cacheDir(p.cfg.CacheDir); err != nil {
			return err
		}
	}
	if p.binaries, err = search.find(ctx, major); err != nil {
		return err
	}
	if err := p.readPassword(major != 0); err != nil {
		return err
	}
	if major == 0 {
		if err := p.initialise(ctx); err != nil {
			return err
		}
	}
	if err := settlePostmaster(ctx, p.data()); err != nil {
		return err
	}
	port, err := onFreePort(postgresName, p.cfg.Addr, p.cfg.Dir.port(postgresName), func(host string, port int) error {
		return p.startServer(ctx, host, port)
	})
	if err != nil {
		return err
	}
	err = p.createDatabase(ctx)
	if err == nil {
		err = p.cfg.Dir.rememberPort(postgresName, port)
	}
	if err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

func (p *Postgres) data() string { return filepath.Join(p.at.path, "data") }

func cacheDir(chosen string) (string, error) {
	if chosen != "" {
		return filepath.Abs(chosen)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/millrace", nil // root's own is closed to the server's account
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", nil //nolint:nilerr // no home: nothing is downloaded
	}
	return filepath.Join(dir, "millrace"), nil
}

// dataVersion returns the major version that made a data directory, 0 when there
// is none.
func dataVersion(data string) (int, error) {
	b, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, dirError(data, err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: PG_VERSION says %q", data, strings.TrimSpace(string(b)))
	}
	return major, nil
}

func (p *Postgres) readPassword(must bool) error {
	name := filepath.Join(p.cfg.Dir.Path(), "postgres.password")
	b, err := os.ReadFile(name)
	if err == nil {
		p.password = strings.TrimSpace(string(b))
		return nil
	}
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the server's password: %w", err)
	case must:
		return fmt.Errorf("%s, the password of the database in %s, is missing: bring it back, or delete %s to begin with an empty database",
			name, p.data(), p.data())
	}
	var secret [18]byte
	rand.Read(secret[:])
	p.password = hex.EncodeToString(secret[:])
	if err := os.WriteFile(name, []byte(p.password+"\n"), 0o600); err != nil {
		return dirError(name, err)
	}
	return nil
}

// initialise makes the data directory under a name of its own first: one that
// was cut short would look like a whole one.
func (p *Postgres) initialise(ctx context.Context) error {
	fresh := filepath.Join(p.at.path, "data.new")
	secret := filepath.Join(p.at.path, "password.new")
	if err := errors.Join(os.RemoveAll(fresh), os.RemoveAll(p.data())); err != nil {
		return err
	}
	if err := os.WriteFile(secret, []byte(p.password+"\n"), 0o600); err != nil {
		return dirError(secret, err)
	}
	defer os.Remove(secret) //nolint:errcheck // it is inside a folder that only the server's account can enter
	if p.at.acct != nil {
		if err := os.Chown(secret, int(p.at.acct.uid), int(p.at.acct.gid)); err != nil {
			return err
		}
	}
	args := []string{
		"-D", fresh, "-U", pgUser, "--pwfile=" + secret, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C",
	}
	if !p.cfg.Sync {
		args = append(args, "--no-sync")
	}
	_, err := runChild(ctx, childConfig{
		name: "initdb", path: filepath.Join(p.binaries.dir, "initdb"), args: args,
		dir: p.at.path, env: childEnv(p.at.path), account: p.at.acct,
		stop: syscall.SIGTERM, stopWithin: 5 * time.Second, logger: p.cfg.Logger,
	})
	if err != nil {
		return err
	}
	return os.Rename(fresh, p.data())
}

func (p *Postgres) startServer(ctx context.Context, host string, port int) error {
	var err error
	p.addr = net.JoinHostPort(host, strconv.Itoa(port))
	p.server, err = startChild(childConfig{
		name: postgresName, path: filepath.Join(p.binaries.dir, "postgres"),
		args: append([]string{"-D", p.data(), "-p", strconv.Itoa(port)}, pgSettings(host, p.cfg.Sync)...),
		dir:  p.at.path, env: childEnv(p.at.path), account: p.at.acct,
		// A fast shutdown: roll back what runs, write a checkpoint, end.
		stop: syscall.SIGINT, stopWithin: 20 * time.Second, logger: p.cfg.Logger,
	})
	if err != nil {
		return err
	}
	err = waitReady(ctx, p.server, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, p.url("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		return errors.Join(err, p.server.close())
	}
	return nil
}

// pgSettings are command line settings, so that they hold for a data directory
// of any age.
func pgSettings(host string, sync bool) []string {
	durable := "off"
	if sync {
		durable = "on"
	}
	settings := []string{
		"listen_addresses=" + host,
		"unix_socket_directories=",
		"max_connections=200",
		"shared_buffers=128MB",
		"max_wal_size=512MB",
		"wal_level=minimal",
		"max_wal_senders=0",
		"fsync=" + durable,
		"full_page_writes=" + durable,
		"synchronous_commit=on",
		// The statements are short: compiling them or spreading them over processes
		// costs more than it saves, and the latter needs room in /dev/shm.
		"jit=off",
		"max_parallel_workers_per_gather=0",
		"logging_collector=off",
		"log_destination=stderr",
		"log_line_prefix=",
		"log_checkpoints=off",
		"timezone=UTC",
		"ssl=off",
	}
	args := make([]string, 0, 2*len(settings))
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	return args
}

func (p *Postgres) createDatabase(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing to lose
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", pgDatabase).Scan(&there); err != nil {
		return fmt.Errorf("look for database %s: %w", pgDatabase, err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgDatabase); err != nil {
		return fmt.Errorf("create database %s: %w", pgDatabase, err)
	}
	return nil
}

func (p *Postgres) url(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(pgUser, p.password), Host: p.addr, Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Name returns "postgres".
func (p *Postgres) Name() string { return postgresName }

// Addr returns the server's address, host:port.
func (p *Postgres) Addr() string { return p.addr }

// URL returns the connection string, password included.
func (p *Postgres) URL() string { return p.url(pgDatabase) }

// Describe says in a line what runs and what of it lasts.
func (p *Postgres) Describe() string {
	s := "PostgreSQL " + p.binaries.version + " (" + p.binaries.dir + ") on " + p.addr
	if p.at.acct != nil {
		s += " as user " + p.at.acct.name + " since it refuses root"
	}
	if p.cfg.Dir.Temporary() {
		s += ", data in a temporary directory"
	} else {
		s += ", data in " + p.data()
	}
	if p.at.note != "" {
		s += " (" + p.at.note + ")"
	}
	if p.cfg.Sync {
		return s + ", synced"
	}
	return s + ", fsync off"
}

// Done is closed when the server has ended.
func (p *Postgres) Done() <-chan struct{} { return p.server.done }

// Err says how the server ended, once Done is closed.
func (p *Postgres) Err() error { return p.server.err }

// Close stops the server.
func (p *Postgres) Close() error {
	p.once.Do(func() { p.err = p.server.close() })
	return p.err
}
