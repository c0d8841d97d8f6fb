package testenv

import (
	"context"
	"errors"
	"os"
	"strconv"
	"syscall"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// Labels of every container: the process that started it and the host that process runs on.
const (
	ownerLabel = "millrace.test.owner"
	hostLabel  = "millrace.test.host"
)

func ownerLabels() map[string]string {
	return map[string]string{ownerLabel: strconv.Itoa(os.Getpid()), hostLabel: hostname()}
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// removeLeftovers removes the containers of test binaries that died without doing so, by a time-out or a signal. An owner's number
// that the system has given to another process keeps a leftover alive until that process ends, never the other way round.
func removeLeftovers(ctx context.Context, docker *testcontainers.DockerClient) error {
	filters := make(client.Filters).Add("label", ownerLabel, hostLabel+"="+hostname())
	list, err := docker.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	if err != nil {
		return err
	}
	for _, container := range list.Items {
		owner, err := strconv.Atoi(container.Labels[ownerLabel])
		if err == nil && !errors.Is(syscall.Kill(owner, 0), syscall.ESRCH) {
			continue
		}
		_, err = docker.ContainerRemove(ctx, container.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		// Another test binary may be removing it at the same moment: not found, or a conflict.
		if err != nil && !cerrdefs.IsNotFound(err) && !cerrdefs.IsConflict(err) {
			return err
		}
	}
	return nil
}
