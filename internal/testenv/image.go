package testenv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
)

// ErrUnavailable means that the services cannot be started on this machine as it is.
var ErrUnavailable = errors.New(`run "make test-deps" (Debian, as root), or start a Docker engine that can pull images`)

// image names the containers of one service.
type image struct {
	service  string
	setting  string // environment variable that overrides the others
	official string
	built    string // what scripts/test-deps builds
}

var (
	kafkaImage    = image{"Kafka", "MILLRACE_TEST_KAFKA_IMAGE", "apache/kafka:4.3.1", "millrace-test/kafka:latest"}
	redisImage    = image{"Redis", "MILLRACE_TEST_REDIS_IMAGE", "redis:7.4-alpine", "millrace-test/redis:latest"}
	postgresImage = image{"PostgreSQL", "MILLRACE_TEST_POSTGRES_IMAGE", "postgres:17-alpine", "millrace-test/postgres:latest"}
)

// engine connects to the Docker engine, once per process.
var engine = sync.OnceValues(func() (*testcontainers.DockerClient, error) {
	// Must be set before testcontainers reads its settings for the first time.
	if os.Getenv("TESTCONTAINERS_RYUK_DISABLED") == "" {
		if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
			return nil, err
		}
	}
	log.SetDefault(log.NewNoopLogger())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	docker, err := testcontainers.NewDockerClientWithOpts(ctx)
	connected = docker
	if err == nil {
		_, err = docker.Ping(ctx, client.PingOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("no Docker engine is reachable: %w: %w", err, ErrUnavailable)
	}
	return docker, nil
})

// connected is the engine's client once engine has been called.
var connected *testcontainers.DockerClient

// disconnect closes the idle connections to the engine; the next call opens new ones.
func disconnect() error {
	if connected == nil {
		return nil
	}
	return connected.Close()
}

// name chooses the image: the setting, else one built here, else the official one, which present says need not be pulled.
func (i image) name(ctx context.Context, docker *testcontainers.DockerClient) (name string, present bool, err error) {
	candidates := []string{i.built, i.official}
	if set := os.Getenv(i.setting); set != "" {
		candidates = []string{set}
	}
	for _, name = range candidates {
		_, err = docker.ImageInspect(ctx, name)
		if err == nil {
			return name, true, nil
		}
		if !cerrdefs.IsNotFound(err) {
			return "", false, fmt.Errorf("look for image %s: %w", name, err)
		}
	}
	return name, false, nil
}

// Check says in a line each which engine and which images the tests would use. It wraps ErrUnavailable if the engine does not
// answer, or if an image is neither present nor known to its registry.
func Check(ctx context.Context) (report []string, err error) {
	docker, err := engine()
	if err != nil {
		return nil, err
	}
	version, err := docker.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the Docker engine for its version: %w", err)
	}
	report = append(report, "Docker engine "+cmp.Or(version.Version, "of unknown version"))
	var missing []error
	for _, i := range []image{kafkaImage, redisImage, postgresImage} {
		name, present, err := i.name(ctx, docker)
		if err != nil {
			return report, err
		}
		if present {
			report = append(report, fmt.Sprintf("%s: %s is present", i.service, name))
			continue
		}
		asked, cancel := context.WithTimeout(ctx, 30*time.Second)
		_, err = docker.DistributionInspect(asked, name, client.DistributionInspectOptions{})
		cancel()
		if err != nil {
			missing = append(missing, fmt.Errorf("image %s for %s is not present and cannot be pulled: %w", name, i.service, err))
			continue
		}
		report = append(report, fmt.Sprintf("%s: %s will be pulled", i.service, name))
	}
	if len(missing) > 0 {
		return report, errors.Join(append(missing, ErrUnavailable)...)
	}
	return report, nil
}
