package testenv

import (
	"context"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
)

// hostNetwork reports whether containers share this machine's network, where the engine allows that: every byte to a published
// port goes through a proxy of the engine's, which takes more of the processor than Kafka does. MILLRACE_TEST_NETWORK=bridge
// publishes ports all the same.
var hostNetwork = sync.OnceValue(func() bool {
	if runtime.GOOS != "linux" || os.Getenv("MILLRACE_TEST_NETWORK") == "bridge" {
		return false
	}
	docker, err := engine()
	if err != nil || !strings.HasPrefix(docker.DaemonHost(), "unix://") {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	info, err := docker.Info(ctx, client.InfoOptions{})
	// Neither a rootless engine nor Docker Desktop's virtual machine has this machine's network.
	return err == nil && !slices.Contains(info.Info.SecurityOptions, "name=rootless") && !strings.Contains(info.Info.OperatingSystem, "Docker Desktop")
})
