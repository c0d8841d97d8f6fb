package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// startTimeout bounds how long a server may take from its start, or its second start, to its first answer.
const startTimeout = 90 * time.Second

// Server is one service in a container. Its address stays the same from start to end, however often it is stopped and started.
type Server struct {
	// Address is the host and port, "127.0.0.1:23456".
	Address string
	// URL is what a client of the service is configured with: the address for Kafka, a URL with the credentials otherwise.
	URL string
	// More are further addresses of a container that runs several servers.
	More []string

	docker    *testcontainers.DockerClient
	container *testcontainers.DockerContainer
	ping      func(ctx context.Context) error
}

// spec is what the services differ in.
type spec struct {
	image image
	port  string // inside the container; the host's if empty, or where the container has the host's network
	user  string // in the container; the image's if empty
	more  int    // further ports, the same inside and outside
	env   map[string]string
	args  []string
	// onHost says that the container has the host's network: it listens on port of 127.0.0.1, and on nothing else that another
	// container could want.
	onHost bool
	// spare is a second port for a server that has the host's network.
	spare int
	// configure completes the specification and the server once the port is known.
	configure func(*spec, *Server)
	ping      func(ctx context.Context, server *Server) error
}

// start runs a container and waits until the server answers.
func start(ctx context.Context, s spec) (*Server, error) {
	docker, err := engine()
	if err != nil {
		return nil, err
	}
	if err := removeLeftovers(ctx, docker); err != nil {
		return nil, fmt.Errorf("remove containers of test binaries that are gone: %w", err)
	}
	name, present, err := s.image.name(ctx, docker)
	if err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		server, err := run(ctx, docker, name, s)
		switch {
		case err == nil:
			return server, nil
		case attempt < 5 && portTaken(err):
			// Someone took the port between the choice and its use.
		case !present:
			return nil, fmt.Errorf("start %s from %s: %w: %w", s.image.service, name, err, ErrUnavailable)
		default:
			return nil, fmt.Errorf("start %s from %s: %w", s.image.service, name, err)
		}
	}
}

func run(ctx context.Context, docker *testcontainers.DockerClient, name string, s spec) (*Server, error) {
	hostPort, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	server := &Server{Address: "127.0.0.1:" + strconv.Itoa(hostPort), docker: docker}
	server.ping = func(ctx context.Context) error { return s.ping(ctx, server) }
	if s.onHost = hostNetwork(); s.onHost {
		if s.spare, err = freePort(ctx); err != nil {
			return nil, err
		}
	}
	if s.port == "" || s.onHost {
		s.port = strconv.Itoa(hostPort)
	}
	inside := map[string]int{s.port: hostPort}
	for range s.more {
		port, err := freePort(ctx)
		if err != nil {
			return nil, err
		}
		inside[strconv.Itoa(port)] = port
		server.More = append(server.More, "127.0.0.1:"+strconv.Itoa(port))
	}
	s.env = maps.Clone(s.env)
	s.configure(&s, server)
	var exposed []string
	bindings := make(network.PortMap)
	for port, outside := range inside {
		parsed, err := network.ParsePort(port + "/tcp")
		if err != nil {
			return nil, err
		}
		exposed = append(exposed, parsed.String())
		bindings[parsed] = []network.PortBinding{{HostIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), HostPort: strconv.Itoa(outside)}}
	}
	bind := func(host *container.HostConfig) { host.PortBindings = bindings }
	if s.onHost {
		exposed = nil
		bind = func(host *container.HostConfig) { host.NetworkMode = network.NetworkHost }
	}
	server.container, err = testcontainers.Run(ctx, name, testcontainers.WithExposedPorts(exposed...),
		testcontainers.WithConfigModifier(func(config *container.Config) { config.User = s.user }),
		testcontainers.WithHostConfigModifier(bind), testcontainers.WithEnv(s.env), testcontainers.WithCmd(s.args...),
		testcontainers.WithLabels(ownerLabels()))
	if err == nil {
		err = server.awaitAnswer(ctx)
	}
	if err != nil {
		if server.container != nil {
			err = errors.Join(err, server.terminate(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	return server, nil
}

func portTaken(err error) bool {
	return strings.Contains(err.Error(), "port is already allocated") || strings.Contains(err.Error(), "address already in use")
}

// awaitAnswer pings until the server answers, its container ends or startTimeout is over.
func (s *Server) awaitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancelAttempt := context.WithTimeout(ctx, 2*time.Second)
		err := s.ping(attempt)
		cancelAttempt()
		if err == nil {
			return nil
		}
		inspected, inspectErr := s.docker.ContainerInspect(ctx, s.container.GetContainerID(), client.ContainerInspectOptions{})
		if inspectErr == nil && !inspected.Container.State.Running {
			return fmt.Errorf("the container ended with code %d: %s", inspected.Container.State.ExitCode, s.lastLines(ctx))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("no answer on %s: %w: %w: %s", s.Address, ctx.Err(), err, s.lastLines(context.WithoutCancel(ctx)))
		}
	}
}

// lastLines is the end of the container's log, to go with an error.
func (s *Server) lastLines(ctx context.Context) string {
	logs, err := s.container.Logs(ctx)
	if err != nil {
		return "no log: " + err.Error()
	}
	defer func() { _ = logs.Close() }()
	text, err := io.ReadAll(logs)
	if err != nil {
		return "no log: " + err.Error()
	}
	return "log ends with: " + string(text[max(0, len(text)-2000):])
}

// Stop ends the server as its operator would: SIGTERM, and SIGKILL after 20 seconds. Data survives as far as the server keeps it.
func (s *Server) Stop(ctx context.Context) error {
	patience := 20 * time.Second
	if err := s.container.Stop(ctx, &patience); err != nil {
		return fmt.Errorf("stop %s: %w", s.Address, err)
	}
	return nil
}

// Kill ends the server with SIGKILL, as the kernel does when memory runs out.
func (s *Server) Kill(ctx context.Context) error {
	_, err := s.docker.ContainerKill(ctx, s.container.GetContainerID(), client.ContainerKillOptions{Signal: "KILL"})
	if err != nil {
		return fmt.Errorf("kill %s: %w", s.Address, err)
	}
	return s.awaitExit(ctx)
}

// awaitExit makes Kill synchronous: a Start that came before the engine had seen the exit would do nothing.
func (s *Server) awaitExit(ctx context.Context) error {
	wait := s.docker.ContainerWait(ctx, s.container.GetContainerID(), client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-wait.Result:
		return nil
	case err := <-wait.Error:
		return fmt.Errorf("wait for the end of %s: %w", s.Address, err)
	}
}

// Start starts a server that was stopped or killed, on the same address, and waits until it answers.
func (s *Server) Start(ctx context.Context) error {
	if err := s.container.Start(ctx); err != nil {
		return fmt.Errorf("start %s: %w", s.Address, err)
	}
	return s.awaitAnswer(ctx)
}

// Pause freezes the server: its connections stay open and nothing answers, as on a machine that hangs.
func (s *Server) Pause(ctx context.Context) error {
	if _, err := s.docker.ContainerPause(ctx, s.container.GetContainerID(), client.ContainerPauseOptions{}); err != nil {
		return fmt.Errorf("pause %s: %w", s.Address, err)
	}
	return nil
}

// Unpause lets a paused server go on.
func (s *Server) Unpause(ctx context.Context) error {
	if _, err := s.docker.ContainerUnpause(ctx, s.container.GetContainerID(), client.ContainerUnpauseOptions{}); err != nil {
		return fmt.Errorf("unpause %s: %w", s.Address, err)
	}
	return nil
}

// terminate kills and removes the container with its data; it may be paused or stopped.
func (s *Server) terminate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	options := client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}
	if _, err := s.docker.ContainerRemove(ctx, s.container.GetContainerID(), options); err != nil {
		return fmt.Errorf("remove the container of %s: %w", s.Address, err)
	}
	return nil
}

// dedicated starts a server for one test, which it does not outlive.
func dedicated(t testing.TB, s spec) *Server {
	t.Helper()
	server, err := start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.terminate(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return server
}
