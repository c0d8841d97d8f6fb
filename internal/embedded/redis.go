package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

const redisName = "redis"

// NoProgram as a program's path means: do not look for one.
const NoProgram = "none"

// RedisConfig says how to run the embedded Redis.
type RedisConfig struct {
	// Dir is the data directory; its folder "redis" is the server's.
	Dir *Dir
	// Addr is a loopback address. Empty or port 0: the port used last with this
	// data directory if it is free, else any.
	Addr string
	// Program is the path of a redis-server. Empty means the one on PATH, if there
	// is one; [NoProgram] means the built-in stand-in.
	Program string
	// Keep makes the server log writes to the data directory, synced every second.
	// The stand-in keeps nothing in any case.
	Keep bool
	// Logger gets the server's own lines, at debug level.
	Logger zerolog.Logger
}

// Redis is a redis-server that runs as a child, or a stand-in inside this
// process (miniredis), which keeps nothing and moves TTLs on once a second.
type Redis struct {
	cfg     RedisConfig
	addr    string
	version string
	note    string

	server  *child
	standIn *miniredis.Miniredis
	stop    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once
	err     error
}

// StartRedis starts Redis and returns when it answers.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	if cfg.Dir == nil {
		return nil, errors.New("redis: no data directory")
	}
	r := &Redis{cfg: cfg, stop: make(chan struct{})}
	program, err := r.find(ctx)
	if err != nil {
		return nil, err
	}
	port, err := onFreePort(redisName, cfg.Addr, cfg.Dir.port(redisName), func(host string, port int) error {
		r.addr = net.JoinHostPort(host, strconv.Itoa(port))
		if program == "" {
			return r.startStandIn()
		}
		return r.startServer(ctx, program, host, port)
	})
	if err != nil {
		return nil, err
	}
	if err := cfg.Dir.rememberPort(redisName, port); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

var redisVersion = regexp.MustCompile(`\bv=(\d+)\.(\d+)\.(\S+)`)

// find returns the server to run, or nothing when the stand-in has to do.
func (r *Redis) find(ctx context.Context) (string, error) {
	program := r.cfg.Program
	if program == NoProgram {
		return "", nil
	}
	if program == "" {
		found, err := exec.LookPath("redis-server")
		if err != nil {
			return "", nil //nolint:nilerr // none there: the stand-in
		}
		program = found
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output() //nolint:gosec // the operator's choice, or PATH's
	m := redisVersion.FindStringSubmatch(string(out))
	if err != nil || m == nil {
		if r.cfg.Program != "" {
			return "", errors.Join(fmt.Errorf("redis: %s does not tell a version", program), err)
		}
		r.note = program + " does not tell a version"
		return "", nil
	}
	r.version = m[1] + "." + m[2] + "." + m[3]
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major > 6 || major == 6 && minor >= 2 {
		return program, nil
	}
	if r.cfg.Program != "" {
		return "", fmt.Errorf("redis: %s is version %s, at least 6.2 is needed", program, r.version)
	}
	r.note = program + " is version " + r.version + ", older than 6.2"
	return "", nil
}

func (r *Redis) startServer(ctx context.Context, program, host string, port int) error {
	at, err := r.cfg.Dir.place(redisName, elsewhere)
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	r.note = at.note
	acct := at.acct
	if real, err := filepath.EvalSymlinks(program); err == nil && acct.reaches(filepath.Dir(real)) != nil {
		acct = nil // a program of root's own; unlike PostgreSQL, Redis does not mind
	}
	appendOnly := "no"
	if r.cfg.Keep {
		appendOnly = "yes"
	}
	r.server, err = startChild(childConfig{
		name: redisName, path: program, dir: at.path, env: childEnv(at.path), account: acct,
		args: []string{
			"--port", strconv.Itoa(port), "--bind", host, "--protected-mode", "yes", "--daemonize", "no",
			"--dir", at.path, "--appendonly", appendOnly, "--appendfsync", "everysec", "--save", "",
			// Keys that coordinate workers must not be evicted to make room.
			"--maxmemory-policy", "noeviction",
		},
		stop: syscall.SIGTERM, stopWithin: 10 * time.Second, logger: r.cfg.Logger,
	})
	if err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: r.addr, MaxRetries: -1})
	defer client.Close() //nolint:errcheck // nothing to lose
	err = waitReady(ctx, r.server, func(ctx context.Context) error { return client.Ping(ctx).Err() })
	if err != nil {
		return errors.Join(err, r.server.close())
	}
	return nil
}

// startTimeout bounds how long a child may take to answer. Replaying a log after
// a crash takes the longest.
const startTimeout = 2 * time.Minute

// waitReady asks a child until it answers, it ends, or time is up.
func waitReady(ctx context.Context, c *child, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(30 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return c.err
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", c.cfg.name, errors.Join(err, context.Cause(ctx)))
		case <-ticker.C:
		}
	}
}

func (r *Redis) startStandIn() error {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(r.addr); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	r.standIn = m
	r.stopped.Add(1)
	go r.tick()
	return nil
}

// tick moves the stand-in's TTLs, which do not move by themselves.
func (r *Redis) tick() {
	defer r.stopped.Done()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-r.stop:
			return
		case now := <-ticker.C:
			r.standIn.FastForward(now.Sub(last))
			last = now
		}
	}
}

// Name returns "redis".
func (r *Redis) Name() string { return redisName }

// Addr returns the server's address, host:port.
func (r *Redis) Addr() string { return r.addr }

// URL returns the address as clients take it.
func (r *Redis) URL() string { return "redis://" + r.addr + "/0" }

// StandIn reports whether this is the stand-in and not a Redis.
func (r *Redis) StandIn() bool { return r.standIn != nil }

// Describe says in a line what runs and what of it lasts.
func (r *Redis) Describe() string {
	if r.StandIn() {
		s := "Redis stand-in (miniredis) on " + r.addr + ", in memory, keeps nothing across a restart"
		if r.note != "" {
			return s + "; " + r.note
		}
		return s + "; no redis-server on PATH"
	}
	s := "redis-server " + r.version + " on " + r.addr
	if !r.cfg.Keep {
		return s + ", in memory"
	}
	s += ", log in " + filepath.Clean(r.server.cfg.dir) + ", synced every second"
	if r.note != "" {
		s += " (" + r.note + ")"
	}
	return s
}

// Done is closed when the server has ended.
func (r *Redis) Done() <-chan struct{} {
	if r.server != nil {
		return r.server.done
	}
	return nil
}

// Err says how the server ended, once Done is closed.
func (r *Redis) Err() error { return r.server.err }

// Close stops the server.
func (r *Redis) Close() error {
	r.once.Do(func() {
		close(r.stop)
		r.stopped.Wait()
		if r.standIn != nil {
			r.standIn.Close()
		}
		if r.server != nil {
			r.err = r.server.close()
		}
	})
	return r.err
}
