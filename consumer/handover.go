package consumer

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

//go:embed lua/withdraw.lua
var withdrawLua string

var withdrawScript = redis.NewScript(withdrawLua)

const (
	// aliveFor is how long an incarnation's announcements outlive its last beat.
	aliveFor = 5 * time.Second
	// announcedFor bounds the life of announcements that nobody takes back.
	announcedFor = 24 * time.Hour
)

// handover is where a worker announces the turns that go on after it has given
// their partition up, and reads what earlier owners have announced:
//
//   - a hash for each partition number, from turn to incarnation (one process
//     start of one worker), written before the group is told that the partition
//     is free, and read when it is assigned;
//   - a key for each incarnation, which expires when it stops beating.
//
// All of it is a hint. If it is lost, a turn may run twice at once; one of the
// two commits.
type handover struct {
	redis       redis.UniversalClient
	prefix      string
	incarnation string
}

// announced is a turn that an earlier owner of its partition still runs.
type announced struct {
	partition int32
	turn      turnName
	by        string
}

// turnName names what is held: a conversation, or the one task of an unkeyed
// lane.
type turnName string

func conversationName(id string) turnName { return turnName("c:" + id) }

func taskName(id string) turnName { return turnName("t:" + id) }

func newHandover(client redis.UniversalClient, prefix, pool string) *handover {
	return &handover{redis: client, prefix: prefix + pool + ":", incarnation: uuid.NewString()}
}

// The braces keep a number's keys in one slot of a Redis cluster.
func (h *handover) hash(partition int32) string {
	return h.prefix + "running:{" + strconv.Itoa(int(partition)) + "}"
}

func (h *handover) alive(incarnation string) string { return h.prefix + "alive:" + incarnation }

// announce says that turns go on. It beats first: an announcement of the dead
// would hold nobody.
func (h *handover) announce(ctx context.Context, turns map[int32][]turnName) error {
	pipe := h.redis.Pipeline()
	// What the last beat told stays; without one there is nothing to tell yet.
	pipe.SetNX(ctx, h.alive(h.incarnation), "{}", aliveFor)
	pipe.Expire(ctx, h.alive(h.incarnation), aliveFor)
	for partition, names := range turns {
		values := make([]any, 0, 2*len(names))
		for _, name := range names {
			values = append(values, string(name), h.incarnation)
		}
		pipe.HSet(ctx, h.hash(partition), values...)
		pipe.PExpire(ctx, h.hash(partition), announcedFor)
	}
	_, err := pipe.Exec(ctx)
	return err
}

// withdraw takes an announcement of this incarnation back.
func (h *handover) withdraw(ctx context.Context, partition int32, name turnName) error {
	return withdrawScript.Run(ctx, h.redis, []string{h.hash(partition)}, h.incarnation, string(name)).Err()
}

// read returns what other incarnations have announced for partition numbers.
func (h *handover) read(ctx context.Context, partitions []int32) ([]announced, error) {
	pipe := h.redis.Pipeline()
	hashes := make([]*redis.MapStringStringCmd, len(partitions))
	for i, p := range partitions {
		hashes[i] = pipe.HGetAll(ctx, h.hash(p))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("read running turns: %w", err)
	}
	var out []announced
	for i, p := range partitions {
		for name, by := range hashes[i].Val() {
			if by != h.incarnation {
				out = append(out, announced{partition: p, turn: turnName(name), by: by})
			}
		}
	}
	return out, nil
}

// ended returns those of turns whose announcement is gone, or whose announcer
// is: nobody runs them any more.
func (h *handover) ended(ctx context.Context, turns []announced) ([]announced, error) {
	pipe := h.redis.Pipeline()
	fields := make([]*redis.StringCmd, len(turns))
	alive := make(map[string]*redis.IntCmd)
	for i, t := range turns {
		fields[i] = pipe.HGet(ctx, h.hash(t.partition), string(t.turn))
		if alive[t.by] == nil {
			alive[t.by] = pipe.Exists(ctx, h.alive(t.by))
		}
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("look at running turns: %w", err)
	}
	var out []announced
	for i, t := range turns {
		by, err := fields[i].Result()
		switch {
		case errors.Is(err, redis.Nil), err == nil && by != t.by:
			out = append(out, t)
		case err != nil:
			return nil, fmt.Errorf("look at running turns: %w", err)
		case alive[t.by].Val() == 0:
			out = append(out, t)
		}
	}
	return out, nil
}

// bury removes what a dead incarnation has announced, so that no later owner
// waits for it.
func (h *handover) bury(ctx context.Context, t announced) error {
	return withdrawScript.Run(ctx, h.redis, []string{h.hash(t.partition)}, t.by, string(t.turn)).Err()
}
