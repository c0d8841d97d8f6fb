package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/redis/go-redis/v9"
)

// A cluster, or a master with its replica and sentinels, is one container with a process for each: they see one another, and the
// host sees them, under the same addresses of 127.0.0.1.

// clusterSlots is how many hash slots every Redis cluster has.
const clusterSlots = 16384

// clusterNodes is how many servers a test's cluster has.
const clusterNodes = 3

func nodesOf(s *Server) []string { return s.addresses()[:clusterNodes] }

func busPort(s *Server, node int) string { return portOf(s.addresses()[clusterNodes+node]) }

// listening is where a server listens: on the host's network where only the host can reach it, else wherever the engine leads to.
func listening(s *spec) string {
	if s.onHost {
		return "--bind 127.0.0.1"
	}
	return "--protected-mode no"
}

// RedisCluster is three masters without replicas.
type RedisCluster struct {
	*Server
	// Nodes are the clients of its servers, in the order of their slots.
	Nodes []*redis.Client

	stopped string // the process that stands still
}

// StartRedisCluster starts a cluster for this test alone. The arguments are those of every server. Its URL is for
// MILLRACE_REDIS_MODE=cluster.
func StartRedisCluster(t testing.TB, args ...string) *RedisCluster {
	t.Helper()
	c := &RedisCluster{}
	c.Server = dedicated(t, spec{
		image: redisImage,
		more:  clusterNodes - 1 + clusterNodes, // and what they talk to one another on
		configure: func(s *spec, server *Server) {
			s.args = sideBySide(nodesOf(server), func(i int, port string) string {
				return "redis-server " + listening(s) + " --save '' --cluster-enabled yes --cluster-announce-ip 127.0.0.1 --cluster-port " + busPort(server, i) +
					" --cluster-node-timeout 2000 --dir /data --cluster-config-file nodes-" + port + ".conf " + strings.Join(args, " ")
			})
			server.URL = "redis://" + server.Address + "?addr=" + server.More[0] + "&addr=" + server.More[1]
		},
		ping: func(ctx context.Context, server *Server) error { return pingAll(ctx, nodesOf(server)) },
	})
	for _, address := range nodesOf(c.Server) {
		c.Nodes = append(c.Nodes, redis.NewClient(&redis.Options{Addr: address}))
	}
	t.Cleanup(func() {
		for _, node := range c.Nodes {
			_ = node.Close()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := c.form(ctx); err != nil {
		t.Fatalf("form a Redis cluster: %v", err)
	}
	return c
}

// form makes a cluster of servers that do not know one another.
func (c *RedisCluster) form(ctx context.Context) error {
	for i, node := range c.Nodes {
		first, end := i*clusterSlots/len(c.Nodes), (i+1)*clusterSlots/len(c.Nodes)
		host, port, err := net.SplitHostPort(c.Address)
		err = errors.Join(err,
			node.ClusterAddSlotsRange(ctx, first, end-1).Err(),
			// Epochs of their own spare them the settling of who has which.
			node.Do(ctx, "cluster", "set-config-epoch", i+1).Err())
		if i > 0 {
			err = errors.Join(err, node.Do(ctx, "cluster", "meet", host, port, busPort(c.Server, 0)).Err())
		}
		if err != nil {
			return err
		}
	}
	return poll(ctx, func() error {
		for _, node := range c.Nodes {
			info, err := node.ClusterInfo(ctx).Result()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_size:%d", len(c.Nodes))) {
				return fmt.Errorf("%s says %q", node.Options().Addr, info)
			}
		}
		return nil
	})
}

// Move gives slots of one node to another while the cluster serves them, as redis-cli --cluster reshard does. Between its three
// steps, which wait as long as is said, clients are sent on with ASK, and scripts on several keys are told to try again.
func (c *RedisCluster) Move(ctx context.Context, slots []int, from, to int, wait time.Duration) error {
	source, target := c.Nodes[from], c.Nodes[to]
	sourceID, err := source.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	targetID, err := target.ClusterMyID(ctx).Result()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(target.Options().Addr)
	if err != nil {
		return err
	}
	setSlots := func(node *redis.Client, words ...any) error {
		_, err := node.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for _, slot := range slots {
				pipe.Do(ctx, append([]any{"cluster", "setslot", slot}, words...)...)
			}
			return nil
		})
		return err
	}
	// In this order: a target that is not ready for keys refuses them.
	if err := setSlots(target, "importing", sourceID); err != nil {
		return err
	}
	if err := setSlots(source, "migrating", targetID); err != nil {
		return err
	}
	for _, slot := range slots {
		// One key at a time, so that there is a moment in which a conversation has its hash here and its list there.
		for {
			keys, err := source.ClusterGetKeysInSlot(ctx, slot, 1).Result()
			if err != nil {
				return err
			}
			if len(keys) == 0 {
				break
			}
			if err := source.Migrate(ctx, host, port, keys[0], 0, 5*time.Second).Err(); err != nil {
				return err
			}
		}
	}
	if err := pause(ctx, wait); err != nil {
		return err
	}
	if err := setSlots(target, "node", targetID); err != nil {
		return err
	}
	return setSlots(source, "node", targetID)
}

// RedisSentinel is a master with a replica, and three sentinels that watch them.
type RedisSentinel struct{ *Server }

// StartRedisSentinel starts them for this test alone. The URL is for MILLRACE_REDIS_MODE=sentinel.
func StartRedisSentinel(t testing.TB) *RedisSentinel {
	t.Helper()
	s := &RedisSentinel{}
	s.Server = dedicated(t, spec{
		image: redisImage,
		more:  4,
		configure: func(sp *spec, server *Server) {
			addresses := server.addresses()
			_, master, _ := strings.Cut(addresses[0], ":")
			sp.args = sideBySide(addresses, func(_ int, port string) string {
				server := "redis-server " + listening(sp) + " --save '' --dir /data --dbfilename dump-" + port + ".rdb --repl-diskless-sync-delay 0 --replica-announce-ip 127.0.0.1 "
				switch port {
				case master:
					return server
				case portOf(addresses[1]):
					return server + "--replicaof 127.0.0.1 " + master
				}
				file := "/data/sentinel-" + port + ".conf"
				return fmt.Sprintf(`printf 'dir /data\nsentinel announce-ip 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 %s 2\n`+
					`sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n' >%s; redis-server %s --sentinel %s`, master, file, file, listening(sp))
			})
			server.URL = fmt.Sprintf("redis://%s?master_name=mymaster&addr=%s&addr=%s", addresses[2], addresses[3], addresses[4])
		},
		ping: func(ctx context.Context, server *Server) error {
			if err := pingAll(ctx, server.addresses()); err != nil {
				return err
			}
			return s.watched(ctx, server)
		},
	})
	return s
}

// watched reports whether the replica follows its master and all sentinels know of it and of one another: earlier there is nobody to
// take over.
func (s *RedisSentinel) watched(ctx context.Context, server *Server) error {
	for _, address := range server.addresses()[2:] {
		sentinel := redis.NewSentinelClient(&redis.Options{Addr: address})
		state, err := sentinel.Master(ctx, "mymaster").Result()
		err = errors.Join(err, sentinel.Close())
		if err != nil {
			return err
		}
		if state["num-slaves"] != "1" || state["num-other-sentinels"] != "2" || state["flags"] != "master" {
			return fmt.Errorf("sentinel %s knows %s replicas and %s other sentinels, the master is %s",
				address, state["num-slaves"], state["num-other-sentinels"], state["flags"])
		}
	}
	return nil
}

// KillMaster ends the master's process, with whatever it has not sent to its replica. It does not come back.
func (s *RedisSentinel) KillMaster(ctx context.Context) error {
	return s.signal(ctx, s.Address, "KILL")
}

// Master returns the address of the master that the sentinels name.
func (s *RedisSentinel) Master(ctx context.Context) (string, error) {
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: s.addresses()[2]})
	defer func() { _ = sentinel.Close() }()
	address, err := sentinel.GetMasterAddrByName(ctx, "mymaster").Result()
	return strings.Join(address, ":"), err
}

// StopNode has a node stand still: its connections stay open and nothing answers.
func (c *RedisCluster) StopNode(ctx context.Context, node int) error {
	address := c.addresses()[node]
	info, err := c.Nodes[node].InfoMap(ctx, "server").Result()
	if err != nil {
		return err
	}
	c.stopped = info["Server"]["process_id"]
	return c.kill(ctx, address, "STOP", c.stopped)
}

// ContinueNode ends what StopNode has begun.
func (c *RedisCluster) ContinueNode(ctx context.Context, node int) error {
	return c.kill(ctx, c.addresses()[node], "CONT", c.stopped)
}

// signal sends a signal to the server on an address.
func (s *Server) signal(ctx context.Context, address, signal string) error {
	server := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
	defer func() { _ = server.Close() }()
	info, err := server.InfoMap(ctx, "server").Result()
	if err != nil {
		return err
	}
	return s.kill(ctx, address, signal, info["Server"]["process_id"])
}

func (s *Server) kill(ctx context.Context, address, signal, pid string) error {
	created, err := s.docker.ExecCreate(ctx, s.container.GetContainerID(), client.ExecCreateOptions{Cmd: []string{"sh", "-c", "kill -" + signal + " " + pid}})
	if err == nil {
		_, err = s.docker.ExecStart(ctx, created.ID, client.ExecStartOptions{Detach: true})
	}
	if err != nil {
		return fmt.Errorf("signal %s to %s: %w", signal, address, err)
	}
	return poll(ctx, func() error {
		state, err := s.docker.ExecInspect(ctx, created.ID, client.ExecInspectOptions{})
		switch {
		case err != nil:
			return err
		case state.Running:
			return errors.New("kill has not ended")
		}
		return nil
	})
}

// addresses are all of a server's.
func (s *Server) addresses() []string { return append([]string{s.Address}, s.More...) }

func portOf(address string) string {
	_, port, _ := strings.Cut(address, ":")
	return port
}

// sideBySide is the command of a container with a server on each address. It lasts while any of them does.
func sideBySide(addresses []string, command func(i int, port string) string) []string {
	var script strings.Builder
	for i, address := range addresses {
		port := portOf(address)
		fmt.Fprintf(&script, "(%s --port %s) &\n", command(i, port), port)
	}
	script.WriteString("wait\n")
	return []string{"sh", "-c", script.String()}
}

func pingAll(ctx context.Context, addresses []string) error {
	for _, address := range addresses {
		server := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
		err := errors.Join(server.Ping(ctx).Err(), server.Close())
		if err != nil {
			return fmt.Errorf("%s: %w", address, err)
		}
	}
	return nil
}

// poll asks until done returns nil or ctx ends.
func poll(ctx context.Context, done func() error) error {
	for {
		err := done()
		if err == nil {
			return nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SlotsWithKeys returns up to n slots of a node that hold keys, those of the given keys first.
func (c *RedisCluster) SlotsWithKeys(ctx context.Context, node, n int, first ...string) ([]int, error) {
	var slots []int
	taken := make(map[int]bool)
	lowest, end := node*clusterSlots/len(c.Nodes), (node+1)*clusterSlots/len(c.Nodes)
	for _, key := range first {
		slot, err := c.Nodes[node].ClusterKeySlot(ctx, key).Result()
		if err != nil {
			return nil, err
		}
		if s := int(slot); s >= lowest && s < end && !taken[s] {
			taken[s] = true
			slots = append(slots, s)
		}
	}
	pipe := c.Nodes[node].Pipeline()
	counts := make([]*redis.IntCmd, 0, end-lowest)
	for slot := lowest; slot < end; slot++ {
		counts = append(counts, pipe.ClusterCountKeysInSlot(ctx, slot))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	for i, count := range counts {
		if slot := lowest + i; len(slots) < n && count.Val() > 0 && !taken[slot] {
			slots = append(slots, slot)
		}
	}
	if len(slots) == 0 {
		return nil, errors.New("node " + strconv.Itoa(node) + " has no keys")
	}
	return slots, nil
}
