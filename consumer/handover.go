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

//go:embed lua/bury.lua
var buryLua string

var (
	withdrawScript = redis.NewScript(withdrawLua)
	buryScript     = redis.NewScript(buryLua)
)

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
//   - a hash for each partition number, from task to the incarnation that runs a
//     turn of it, written for turns that last (see [Engine.markLong]): an
//     announcement ahead of time, should the worker not live to make one;
//   - a hash for each partition number with the past of its tasks (see [past]);
//   - a key for each partition number with the incarnation that owns it, which
//     one that gives it up in order takes away;
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
	// task is that of a marked turn, "" of one that is announced alone.
	task string
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

func (h *handover) marks(partition int32) string {
	return h.prefix + "marked:{" + strconv.Itoa(int(partition)) + "}"
}

func (h *handover) pasts(partition int32) string {
	return h.prefix + "past:{" + strconv.Itoa(int(partition)) + "}"
}

func (h *handover) owner(partition int32) string {
	return h.prefix + "owner:{" + strconv.Itoa(int(partition)) + "}"
}

// own says that this incarnation owns partition numbers. It returns those whose
// owner before it has died: it gave them up to nobody.
func (h *handover) own(ctx context.Context, partitions []int32) (orphaned map[int32]bool, err error) {
	pipe := h.redis.Pipeline()
	owners := make([]*redis.StatusCmd, len(partitions))
	for i, p := range partitions {
		owners[i] = pipe.SetArgs(ctx, h.owner(p), h.incarnation, redis.SetArgs{Get: true, TTL: pastFor})
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("own partitions: %w", err)
	}
	alive := make(map[string]*redis.IntCmd)
	pipe = h.redis.Pipeline()
	for _, owner := range owners {
		if by := owner.Val(); by != "" && by != h.incarnation && alive[by] == nil {
			alive[by] = pipe.Exists(ctx, h.alive(by))
		}
	}
	if len(alive) == 0 {
		return nil, nil //nolint:nilnil // none
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("ask whether earlier owners live: %w", err)
	}
	orphaned = make(map[int32]bool)
	for i, p := range partitions {
		if answer := alive[owners[i].Val()]; answer != nil && answer.Val() == 0 {
			orphaned[p] = true
		}
	}
	return orphaned, nil
}

// disown says that this incarnation gives partition numbers up.
func (h *handover) disown(ctx context.Context, partitions []int32) error {
	pipe := h.redis.Pipeline()
	for _, p := range partitions {
		pipe.Del(ctx, h.owner(p))
	}
	_, err := pipe.Exec(ctx)
	return err
}

func (h *handover) alive(incarnation string) string { return h.prefix + "alive:" + incarnation }

// announce says that turns go on. It beats first: an announcement of the dead
// would hold nobody.
func (h *handover) announce(ctx context.Context, turns map[int32][]turnName) error {
	pipe := h.redis.Pipeline()
	// What the last beat told stays; without one there is nothing to tell yet.
	pipe.SetNX(ctx, h.alive(h.incarnation), "{}", aliveFor)
	pipe.Expire(ctx, h.alive(h.incarnation), aliveFor)
	if err := h.barrier(ctx, pipe); err != nil {
		return err
	}
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

// barrier sends what is in a pipeline when nobody may see what is added to it next
// without it. One server does commands in their order; those of a cluster know
// nothing of one another: one takes the announcement, the other does not answer,
// and the next owner buries the turn of a worker that lives.
func (h *handover) barrier(ctx context.Context, pipe redis.Pipeliner) error {
	if _, cluster := h.redis.(*redis.ClusterClient); !cluster {
		return nil
	}
	_, err := pipe.Exec(ctx)
	return err
}

// withdraw takes an announcement of this incarnation back.
func (h *handover) withdraw(ctx context.Context, partition int32, name turnName) error {
	return withdrawScript.Run(ctx, h.redis, []string{h.hash(partition)}, h.incarnation, string(name)).Err()
}

// read returns what other incarnations have announced or marked for partition
// numbers, and which numbers may have tasks with a past.
func (h *handover) read(ctx context.Context, partitions []int32) ([]announced, map[int32]bool, error) {
	pipe := h.redis.Pipeline()
	hashes := make([]*redis.MapStringStringCmd, len(partitions))
	marks := make([]*redis.MapStringStringCmd, len(partitions))
	pasts := make([]*redis.IntCmd, len(partitions))
	for i, p := range partitions {
		hashes[i] = pipe.HGetAll(ctx, h.hash(p))
		marks[i] = pipe.HGetAll(ctx, h.marks(p))
		pasts[i] = pipe.Exists(ctx, h.pasts(p))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, nil, fmt.Errorf("read running turns: %w", err)
	}
	var out []announced
	withPast := make(map[int32]bool)
	for i, p := range partitions {
		// A turn that is handed over may be marked as well.
		byTurn := make(map[turnName]announced)
		for name, by := range hashes[i].Val() {
			byTurn[turnName(name)] = announced{partition: p, turn: turnName(name), by: by}
		}
		for task, value := range marks[i].Val() {
			by, name, ok := parseMark(value)
			if !ok {
				continue
			}
			if other, taken := byTurn[name]; !taken || other.by == by {
				byTurn[name] = announced{partition: p, turn: name, by: by, task: task}
			}
		}
		for _, a := range byTurn {
			if a.by != h.incarnation {
				out = append(out, a)
				withPast[p] = true // when it has ended, perhaps
			}
		}
		withPast[p] = withPast[p] || pasts[i].Val() > 0
	}
	return out, withPast, nil
}

// ended returns those of turns that nobody runs any more: the ones that their
// announcer has taken back, and the ones whose announcer is dead.
func (h *handover) ended(ctx context.Context, turns []announced) (finished, orphaned []announced, err error) {
	pipe := h.redis.Pipeline()
	fields := make([]*redis.StringCmd, len(turns))
	marks := make([]*redis.StringCmd, len(turns))
	alive := make(map[string]*redis.IntCmd)
	for i, t := range turns {
		fields[i] = pipe.HGet(ctx, h.hash(t.partition), string(t.turn))
		if t.task != "" {
			marks[i] = pipe.HGet(ctx, h.marks(t.partition), t.task)
		}
		if alive[t.by] == nil {
			alive[t.by] = pipe.Exists(ctx, h.alive(t.by))
		}
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, nil, fmt.Errorf("look at running turns: %w", err)
	}
	for i, t := range turns {
		by, err := fields[i].Result()
		runs := by == t.by
		if marks[i] != nil && (err == nil || errors.Is(err, redis.Nil)) {
			var value string
			value, err = marks[i].Result()
			by, _, _ := parseMark(value)
			runs = runs || by == t.by
		}
		switch {
		case err != nil && !errors.Is(err, redis.Nil):
			return nil, nil, fmt.Errorf("look at running turns: %w", err)
		case !runs:
			finished = append(finished, t)
		case alive[t.by].Val() == 0:
			orphaned = append(orphaned, t)
		}
	}
	return finished, orphaned, nil
}

// bury removes what a dead incarnation has left under a partition number, so
// that no later owner waits for it, and counts its death against the turns that
// it had marked. It returns the deaths of those tasks, all that count.
func (h *handover) bury(ctx context.Context, partition int32, incarnation string) (map[string]deaths, error) {
	keys := []string{h.hash(partition), h.marks(partition), h.pasts(partition)}
	words, err := buryScript.Run(ctx, h.redis, keys, incarnation, sharedDeaths, pastFor.Milliseconds()).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("count the death of a worker: %w", err)
	}
	counted := make(map[string]deaths)
	for i := 0; i+1 < len(words); i += 2 {
		counted[words[i]] = deaths(words[i+1])
	}
	return counted, nil
}
