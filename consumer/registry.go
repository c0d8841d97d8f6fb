package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace"
)

// WorkerInfo is what a worker tells the others of itself, once a second. It is a
// hint: what it says was so a moment ago.
type WorkerInfo struct {
	// Incarnation is this start of the worker's process.
	Incarnation string `json:"incarnation"`
	// Name is the one it was given, if any.
	Name       string              `json:"name,omitempty"`
	Pool       string              `json:"pool"`
	Priorities []millrace.Priority `json:"priorities"`
	// Host is the machine it runs on, Addr where it serves HTTP, host:port. Without
	// an Addr it cannot be asked.
	Host string `json:"host,omitempty"`
	Addr string `json:"addr,omitempty"`
	// Partitions are the partition numbers that it owns, of every topic of its
	// priorities.
	Partitions []int32 `json:"partitions"`
	Slots      int     `json:"slots"`
	// Free are the slots in which no turn runs.
	Free      int       `json:"free"`
	StartedAt time.Time `json:"started_at"`
}

// poolSeen is how long after its last word a pool counts as there. It is told by
// the clocks of two machines.
const poolSeen = time.Minute

// poolInfo is what the workers of a pool say of it.
type poolInfo struct {
	Priorities []millrace.Priority `json:"priorities"`
	At         int64               `json:"at"` // unix milliseconds
}

// registry is what workers know of one another: a hash of the workers, from
// incarnation to the key that says that it lives, and a hash of the pools.
type registry struct {
	redis   redis.UniversalClient
	workers string
	pools   string
}

func newRegistry(client redis.UniversalClient, prefix string) *registry {
	return &registry{redis: client, workers: prefix + "workers", pools: prefix + "pools"}
}

// beat says that this incarnation lives, and how it does, and returns what the
// pools say of themselves.
func (r *registry) beat(ctx context.Context, alive string, self *WorkerInfo, now time.Time) (map[string]poolInfo, error) {
	told, err := json.Marshal(self)
	if err != nil {
		return nil, fmt.Errorf("encode worker: %w", err)
	}
	pool, err := json.Marshal(poolInfo{Priorities: self.Priorities, At: now.UnixMilli()})
	if err != nil {
		return nil, fmt.Errorf("encode pool: %w", err)
	}
	pipe := r.redis.Pipeline()
	pipe.Set(ctx, alive, told, aliveFor)
	pipe.HSet(ctx, r.workers, self.Incarnation, alive)
	pipe.HSet(ctx, r.pools, self.Pool, pool)
	all := pipe.HGetAll(ctx, r.pools)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("beat: %w", err)
	}
	pools := make(map[string]poolInfo)
	for name, text := range all.Val() {
		var p poolInfo
		if json.Unmarshal([]byte(text), &p) == nil && now.Sub(time.UnixMilli(p.At)).Abs() <= poolSeen {
			pools[name] = p
		}
	}
	return pools, nil
}

// Workers returns the workers that live, of all pools, by pool and partitions.
// KeyPrefix is that of [Config]; empty means its default.
func Workers(ctx context.Context, client redis.UniversalClient, keyPrefix string) ([]WorkerInfo, error) {
	if keyPrefix == "" {
		keyPrefix = defaultKeyPrefix
	}
	r := newRegistry(client, keyPrefix)
	keys, err := client.HGetAll(ctx, r.workers).Result()
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	incarnations := slices.Collect(maps.Keys(keys))
	if len(incarnations) == 0 {
		return nil, nil
	}
	pipe := client.Pipeline()
	told := make([]*redis.StringCmd, len(incarnations))
	for i, incarnation := range incarnations {
		told[i] = pipe.Get(ctx, keys[incarnation])
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("ask for workers: %w", err)
	}
	var (
		workers []WorkerInfo
		gone    []string
	)
	for i, incarnation := range incarnations {
		text, err := told[i].Bytes()
		if errors.Is(err, redis.Nil) {
			gone = append(gone, incarnation)
			continue
		}
		var w WorkerInfo
		if err := errors.Join(err, json.Unmarshal(text, &w)); err != nil {
			return nil, fmt.Errorf("worker %s: %w", incarnation, err)
		}
		workers = append(workers, w)
	}
	if len(gone) > 0 {
		// One that has only lost touch enters itself again with its next beat.
		_ = client.HDel(ctx, r.workers, gone...).Err()
	}
	slices.SortFunc(workers, func(a, b WorkerInfo) int {
		if c := strings.Compare(a.Pool, b.Pool); c != 0 {
			return c
		}
		if c := slices.Compare(a.Partitions, b.Partitions); c != 0 {
			return c
		}
		return strings.Compare(a.Incarnation, b.Incarnation)
	})
	return workers, nil
}

// Incarnation names this start of the worker, "" without Redis.
func (e *Engine) Incarnation() string {
	if e.handover == nil {
		return ""
	}
	return e.handover.incarnation
}

// self describes this worker.
func (e *Engine) self() *WorkerInfo {
	w := &WorkerInfo{
		Incarnation: e.handover.incarnation, Name: e.cfg.InstanceID, Pool: e.cfg.Pool, Priorities: e.cfg.Priorities,
		Host: e.cfg.Host, Addr: e.cfg.Addr, Partitions: []int32{}, Slots: e.cfg.Slots, StartedAt: e.startedAt,
	}
	seen := make(map[int32]bool)
	e.mu.Lock()
	for tp, p := range e.parts {
		if !p.revoked && !seen[tp.partition] {
			seen[tp.partition] = true
			w.Partitions = append(w.Partitions, tp.partition)
		}
	}
	w.Free = e.schedule.free
	e.mu.Unlock()
	slices.Sort(w.Partitions)
	return w
}

// beat tells that this worker lives, and learns which pools there are.
func (e *Engine) beat(ctx context.Context) error {
	pools, err := e.registry.beat(ctx, e.handover.alive(e.handover.incarnation), e.self(), time.Now())
	if err != nil {
		return err
	}
	e.learnPools(pools)
	return nil
}

// learnPools decides whether turns take leases, and says so when it changes: an
// operator who starts a second pool need not tell the first.
func (e *Engine) learnPools(pools map[string]poolInfo) {
	var others []string
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		if name == e.cfg.Pool {
			continue
		}
		others = append(others, name)
		for _, p := range pools[name].Priorities {
			if key := name + "/" + string(p); slices.Contains(e.cfg.Priorities, p) && !e.overlaps[key] {
				e.overlaps[key] = true
				e.log.Warn().Str("other_pool", name).Str("priority", string(p)).
					Msg("another pool serves this priority as well: every task of it runs in both, and one of the two commits; give each priority to one pool")
			}
		}
	}
	split := e.cfg.Split || len(others) > 0
	switch was := e.leases.split.Swap(split); {
	case split && !was:
		e.log.Info().Strs("other_pools", others).Msg("other pools serve the same conversations: every turn takes a lease from now on")
	case was && !split:
		e.log.Info().Msg("no other pool has been seen for a minute: turns take no leases any more")
	}
}
