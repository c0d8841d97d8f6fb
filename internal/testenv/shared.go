package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

// shared holds the servers that this process has started for all that runs in it.
var shared = struct{ kafka, redis, postgres sharedServer }{
	kafka:    sharedServer{spec: kafkaSpec(nil)},
	redis:    sharedServer{spec: redisSpec()},
	postgres: sharedServer{spec: postgresSpec()},
}

// sharedServer is started by whoever needs it first. A start that failed is not tried again.
type sharedServer struct {
	spec spec

	mu      sync.Mutex
	tried   bool
	started *Server
	err     error
}

func (s *sharedServer) server() (*Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.tried {
		s.tried = true
		// Not the context of the test that happens to come first: the server outlives it.
		s.started, s.err = start(context.Background(), s.spec)
	}
	return s.started, s.err
}

func (s *sharedServer) url(t testing.TB) string {
	t.Helper()
	server, err := s.server()
	if err != nil {
		t.Fatal(err)
	}
	return server.URL
}

func (s *sharedServer) terminate() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started == nil {
		return nil
	}
	return s.started.terminate(context.Background())
}

// StartShared starts the three shared servers, at once, and returns the environment in which other test binaries use them; those
// that the environment names already are left out. The caller ends them with StopShared, also after an error.
func StartShared() (env []string, err error) {
	var group errgroup.Group
	env = make([]string, 3)
	for i, service := range []struct {
		variable string
		server   *sharedServer
	}{
		{"MILLRACE_TEST_KAFKA_BROKERS", &shared.kafka},
		{"MILLRACE_TEST_REDIS_URL", &shared.redis},
		{"MILLRACE_TEST_POSTGRES_URL", &shared.postgres},
	} {
		if set := os.Getenv(service.variable); set != "" {
			env[i] = service.variable + "=" + set
			continue
		}
		group.Go(func() error {
			server, err := service.server.server()
			if err != nil {
				return err
			}
			env[i] = service.variable + "=" + server.URL
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return env, nil
}

// StopShared removes the shared servers that this process has started.
func StopShared() error {
	err := errors.Join(shared.kafka.terminate(), shared.redis.terminate(), shared.postgres.terminate())
	return errors.Join(err, disconnect())
}

// Main runs the tests, removes the containers they shared, and fails if goroutines are left over, for which goleak's options
// make exceptions. It does not return.
func Main(m *testing.M, exceptions ...goleak.Option) { os.Exit(Run(m, exceptions...)) }

// Run is Main for a test binary with more to clean up: it returns the exit code.
func Run(m *testing.M, exceptions ...goleak.Option) int {
	code := m.Run()
	if err := StopShared(); err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(exceptions...); err != nil {
			fmt.Fprintln(os.Stderr, "testenv: goroutines are left over:", err)
			code = 1
		}
	}
	return code
}
