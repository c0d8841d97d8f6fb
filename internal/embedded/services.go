package embedded

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
)

// Config says what to embed and where. Every zero value is a default.
type Config struct {
	// Dir is the data directory.
	Dir DirConfig
	// KafkaAddr, RedisAddr and PostgresAddr are loopback addresses. Empty or port
	// 0: the port used last with this data directory if it is free, else any.
	KafkaAddr, RedisAddr, PostgresAddr string
	// RedisProgram is the path of a redis-server. Empty means PATH's, if any;
	// [NoProgram] the built-in stand-in.
	RedisProgram string
	// PostgresBinDir holds initdb and postgres. Empty means to look for them.
	PostgresBinDir string
	// CacheDir keeps downloaded programs. Empty means the user's cache directory.
	CacheDir string
	// NoDownload makes a machine without PostgreSQL an error.
	NoDownload bool
	// Logger gets the services' own lines.
	Logger zerolog.Logger
}

// Services are the running embedded services.
type Services struct {
	Dir      *Dir
	Kafka    *Kafka
	Redis    *Redis
	Postgres *Postgres

	// minFree is the free space under which Run ends.
	minFree int64
}

// Start starts all services and returns when they answer. With a data directory
// of its own each keeps its data as durably as it can; in a temporary one none
// waits for the disk.
func Start(ctx context.Context, cfg Config) (*Services, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	dir, err := OpenDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Services{Dir: dir, minFree: stopFree}
	if cfg.Dir.MinFree < 0 {
		s.minFree = -1
	}
	keep := !dir.Temporary()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		s.Kafka, err = StartKafka(KafkaConfig{Dir: dir, Addr: cfg.KafkaAddr, Sync: keep, Logger: cfg.Logger})
		return err
	})
	group.Go(func() (err error) {
		s.Redis, err = StartRedis(ctx, RedisConfig{Dir: dir, Addr: cfg.RedisAddr, Program: cfg.RedisProgram, Keep: keep, Logger: cfg.Logger})
		return err
	})
	group.Go(func() (err error) {
		s.Postgres, err = StartPostgres(ctx, PostgresConfig{
			Dir: dir, Addr: cfg.PostgresAddr, BinDir: cfg.PostgresBinDir, CacheDir: cfg.CacheDir,
			NoDownload: cfg.NoDownload, Sync: keep, Logger: cfg.Logger,
		})
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, errors.Join(fmt.Errorf("start embedded services: %w", err), s.Close())
	}
	return s, nil
}

func (cfg *Config) validate() error {
	var errs []error
	taken := make(map[string]string)
	for _, a := range []struct{ service, addr string }{
		{kafkaName, cfg.KafkaAddr}, {redisName, cfg.RedisAddr}, {postgresName, cfg.PostgresAddr},
	} {
		_, port, err := splitAddr(a.addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.service, err))
			continue
		}
		if port == 0 {
			continue
		}
		if other, ok := taken[a.addr]; ok {
			errs = append(errs, fmt.Errorf("%s: address %s is %s's already", a.service, a.addr, other))
		}
		taken[a.addr] = a.service
	}
	return errors.Join(errs...)
}

// list returns the services that run, in order of start.
func (s *Services) list() []Service {
	var all []Service
	for _, service := range []Service{s.Postgres, s.Redis, s.Kafka} {
		if !reflect.ValueOf(service).IsNil() {
			all = append(all, service)
		}
	}
	return all
}

// Describe says a line for the data directory and one for each service.
func (s *Services) Describe() []string {
	lines := []string{s.Dir.Describe()}
	for _, service := range s.list() {
		lines = append(lines, service.Describe())
	}
	return lines
}

// watchEvery is how often the free space is looked at.
const watchEvery = 2 * time.Second

// Run blocks until ctx ends, and returns nil, or until a service stops working
// on its own or the disk runs full, and returns the error that says which. It
// stops nothing: Close does, after those who use the services have ended.
func (s *Services) Run(ctx context.Context) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.Kafka.Done():
			return s.broken(s.Kafka)
		case <-s.Redis.Done():
			return s.broken(s.Redis)
		case <-s.Postgres.Done():
			return s.broken(s.Postgres)
		case <-ticker.C:
			if err := s.checkFree(); err != nil {
				return err
			}
		}
	}
}

func (s *Services) checkFree() error {
	if err := CheckFree(s.Dir.Path(), s.minFree); err != nil {
		return err
	}
	return CheckFree(s.Postgres.at.path, s.minFree)
}

func (s *Services) broken(service Service) error {
	err := service.Err()
	if DiskFull(err) {
		err = explainFull(s.Dir.Path(), err)
	}
	return fmt.Errorf("embedded service ended: %w", err)
}

// Close stops the services, last started first, and then lets the data directory
// go. It may be called again.
func (s *Services) Close() error {
	var errs []error
	all := s.list()
	for i := len(all) - 1; i >= 0; i-- {
		if err := all[i].Close(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.Dir.Close())...)
}
