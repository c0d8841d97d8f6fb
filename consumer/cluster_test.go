package consumer

import (
	"context"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// twoServers are a cluster as its clients see it: each server has half of the slots.
func twoServers(t *testing.T) (*redis.ClusterClient, [2]*miniredis.Miniredis) {
	t.Helper()
	servers := [2]*miniredis.Miniredis{miniredis.RunT(t), miniredis.RunT(t)}
	addrs := [2]string{servers[0].Addr(), servers[1].Addr()} // a closed one has none
	nodes := func(i int) []redis.ClusterNode { return []redis.ClusterNode{{Addr: addrs[i]}} }
	client := redis.NewClusterClient(&redis.ClusterOptions{
		MaxRedirects: -1, MaxRetries: -1, DialerRetries: 1,
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			return []redis.ClusterSlot{
				{Start: 0, End: 8191, Nodes: nodes(0)},
				{Start: 8192, End: 16383, Nodes: nodes(1)},
			}, nil
		},
	})
	t.Cleanup(func() { _ = client.Close() })
	return client, servers
}

// An announcement of a worker that does not seem to live holds nobody: in a
// cluster the two lie on different servers, and one of them may not answer.
func TestNothingIsAnnouncedOfAWorkerThatDoesNotSeemToLive(t *testing.T) {
	client, servers := twoServers(t)
	h := newHandover(client, "t:", "default")
	name := conversationName("c")
	turns, marks := make(map[int32][]turnName), []mark(nil)
	for p := range int32(20) { // on both servers
		turns[p] = []turnName{name}
		marks = append(marks, mark{key: noteKey{p, "task"}, turn: name})
	}
	if err := h.announce(t.Context(), turns); err != nil {
		t.Fatal(err)
	}
	if err := h.mark(t.Context(), marks); err != nil {
		t.Fatal(err)
	}
	living := 0
	if servers[1].Exists(h.alive(h.incarnation)) {
		living = 1
	}
	if written := len(servers[0].Keys()) + len(servers[1].Keys()); written != 41 || len(servers[1-living].Keys()) == 0 {
		t.Fatalf("%d keys, %d of them on the other server", written, len(servers[1-living].Keys()))
	}
	servers[1-living].FlushAll()
	servers[living].Close()
	if err := h.announce(t.Context(), turns); err == nil {
		t.Error("turns were announced without their worker")
	}
	if err := h.mark(t.Context(), marks); err == nil {
		t.Error("turns were marked without their worker")
	}
	if left := servers[1-living].Keys(); len(left) > 0 {
		t.Errorf("announced nevertheless: %v", left)
	}
}

// One server of a cluster has restarted and does not know the scripts, the other
// does not answer.
func TestAScriptThatOneServerOfAClusterHasForgottenIsSentAgain(t *testing.T) {
	client, servers := twoServers(t)
	s := newLeases(newHandover(client, "t:", "default"), "t:", "default")
	var all []lease
	// The first lies on the server that is out.
	for _, conversation := range []string{"b", "a", "c", "d", "e", "f", "g", "h"} {
		all = append(all, lease{conversation, s.owner + "/1"})
	}
	servers[0].Close()
	answers, err := s.each(t.Context(), leaseTake, all, func(l lease) []any { return s.askArgs(l.turn) })
	if err == nil {
		t.Fatal("a server is out, and no error says so")
	}
	taken := 0
	for _, answer := range answers {
		if c, err := toClaim(answer); err == nil && c.ok {
			taken++
		}
	}
	if want := len(servers[1].Keys()); taken != want || want == 0 || want == len(all) {
		t.Errorf("%d leases were taken, %d are there", taken, want)
	}
}
