package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

func newRedis(t *testing.T) (*redis.Client, *miniredis.Miniredis) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return client, server
}

// pace is a handler that tells of every start and waits where it is told to.
type pace struct {
	mu     sync.Mutex
	starts map[string][]string // task -> workers that started it
	busy   map[string]int      // conversation -> running turns
	stops  map[string]chan struct{}
	t      *testing.T
}

func newPace(t *testing.T) *pace {
	return &pace{starts: make(map[string][]string), busy: make(map[string]int), stops: make(map[string]chan struct{}), t: t}
}

// stopAt makes the turn of a task wait until the returned function is called.
func (p *pace) stopAt(id string) (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.stops[id] = gate
	return sync.OnceFunc(func() { close(gate) })
}

func (p *pace) worker(name string) millrace.HandlerFunc {
	return func(ctx context.Context, turn *millrace.Turn) error {
		id, conv := turn.Task().ID, turn.Task().Conversation
		p.mu.Lock()
		p.starts[id] = append(p.starts[id], name)
		p.busy[conv]++
		if conv != "" && p.busy[conv] > 1 {
			p.t.Errorf("%s: two turns of %s at once", name, conv)
		}
		gate := p.stops[id]
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.busy[conv]--
		}()
		if gate != nil {
			select {
			case <-gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if conv == "" {
			return turn.Result(id)
		}
		return appendTask(ctx, turn)
	}
}

func (p *pace) startsOf(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprint(p.starts[id])
}

func (p *pace) started(id string) func() bool {
	return func() bool { return p.startsOf(id) != "[]" }
}

// spreadOut returns n conversations in each partition.
func spreadOut(n int) []string {
	var out []string
	for c := range n * testPartitions * 4 {
		out = append(out, fmt.Sprintf("c%d", c))
	}
	return out
}

func TestAMovedPartitionStartsAtOnceAndWaitsOnlyForTheTurnsThatRun(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	p := newPace(t)
	withRedis := func(c *Config) { c.Redis, c.Slots = client, 200 }
	convs := spreadOut(2)
	var (
		first    []millrace.Task
		releases []func()
	)
	for _, c := range convs {
		first = append(first, task(c, 0, millrace.Normal))
		releases = append(releases, p.stopAt(first[len(first)-1].ID))
	}
	b.send(t, first...)
	a, _ := b.start(t, store, p.worker("a"), withRedis)
	for _, tk := range first {
		eventually(t, tk.ID+" runs", p.started(tk.ID))
	}
	other, _ := b.start(t, store, p.worker("b"), withRedis)
	eventually(t, "half of the partitions have moved", func() bool {
		other.mu.Lock()
		defer other.mu.Unlock()
		return len(other.parts) == 3*testPartitions/2
	})
	// Everything of the moved partitions but the running conversations goes on.
	var fresh []millrace.Task
	for _, c := range convs {
		fresh = append(fresh, task("new-"+c, 0, millrace.Normal), task(c, 1, millrace.Normal))
	}
	b.send(t, fresh...)
	store.await(t, len(convs)) // the new conversations, at both workers
	for _, c := range convs {
		if got := p.startsOf(task(c, 1, millrace.Normal).ID); got != "[]" {
			t.Errorf("%s went on at %s while its first turn still ran", c, got)
		}
	}
	for _, release := range releases {
		release()
	}
	store.await(t, 3*len(convs))
	moved := 0
	for _, c := range convs {
		if got := p.startsOf(task(c, 0, millrace.Normal).ID); got != "[a]" {
			t.Errorf("first turn of %s started at %s, want once at a", c, got)
		}
		if p.startsOf(task(c, 1, millrace.Normal).ID) == "[b]" {
			moved++
		}
	}
	if moved == 0 {
		t.Error("no conversation has moved")
	}
	eventually(t, "nothing is announced any more", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		other.mu.Lock()
		defer other.mu.Unlock()
		return len(a.withdrawals) == 0 && len(other.holds) == 0 && len(client.Keys(t.Context(), "*running*").Val()) == 0
	})
}

func TestAStoppedWorkerLeavesAtOnceAndFinishesItsTurns(t *testing.T) {
	for _, instance := range []string{"", "w1"} {
		t.Run("instance "+instance, func(t *testing.T) {
			b, store := newBroker(t), newMemoryStore()
			client, _ := newRedis(t)
			p := newPace(t)
			long := task("long", 0, millrace.Normal)
			unkeyed := task("", 7, millrace.Normal)
			releases := []func(){p.stopAt(long.ID), p.stopAt(unkeyed.ID)}
			b.send(t, long, unkeyed, task("long", 1, millrace.Normal))
			_, stop := b.start(t, store, p.worker("a"), func(c *Config) { c.Redis, c.InstanceID = client, instance })
			eventually(t, "the long turn runs", p.started(long.ID))
			eventually(t, "the unkeyed turn runs", p.started(unkeyed.ID))
			stopped := make(chan struct{})
			go func() {
				stop()
				close(stopped)
			}()
			began := time.Now()
			b.start(t, store, p.worker("b"), func(c *Config) { c.Redis = client })
			b.send(t, task("other", 0, millrace.Normal))
			eventually(t, "other conversations go on elsewhere", p.started("other/normal/0"))
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the partitions stood still for %s", took)
			}
			select {
			case <-stopped:
				t.Fatal("the worker did not wait for its turns")
			default:
			}
			for _, release := range releases {
				release()
			}
			<-stopped
			store.await(t, 4)
			for id, want := range map[string]string{long.ID: "[a]", unkeyed.ID: "[a]", "long/normal/1": "[b]"} {
				if got := p.startsOf(id); got != want {
					t.Errorf("%s started at %s, want %s", id, got, want)
				}
			}
		})
	}
}

func TestTheTurnsOfADeadOwnerAreNotWaitedFor(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	p := newPace(t)
	dead := newHandover(client, "millrace:", "default")
	var numbers []int32
	names := make(map[int32][]turnName)
	for n := range int32(testPartitions) {
		numbers = append(numbers, n)
		names[n] = []turnName{conversationName("c")}
	}
	if err := dead.announce(t.Context(), names); err != nil {
		t.Fatal(err)
	}
	engine, _ := b.start(t, store, p.worker("b"), func(c *Config) { c.Redis = client })
	b.send(t, task("c", 0, millrace.Normal), task("free", 0, millrace.Normal))
	store.await(t, 1)
	eventually(t, "the conversation is held", func() bool { return engine.waitingIn("c") == 1 })
	server.FastForward(aliveFor + time.Second)
	if got, want := ids(store.await(t, 2)), "[free/normal/0 c/normal/0]"; got != want {
		t.Errorf("completed %s, want %s", got, want)
	}
	eventually(t, "the dead one's announcements are buried", func() bool {
		left, _, err := newHandover(client, "millrace:", "default").read(t.Context(), numbers)
		return err == nil && len(left) == 0
	})
}

func TestWithoutRedisATurnThatCannotBeAnnouncedIsCanceled(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	p := newPace(t)
	convs := spreadOut(1)
	var tasks []millrace.Task
	for _, c := range convs {
		tasks = append(tasks, task(c, 0, millrace.Normal))
		defer p.stopAt(tasks[len(tasks)-1].ID)()
	}
	withRedis := func(c *Config) { c.Redis, c.Slots, c.RevokeGrace = client, 200, 20*time.Millisecond }
	b.send(t, tasks...)
	b.start(t, store, p.worker("a"), withRedis)
	for _, tk := range tasks {
		eventually(t, tk.ID+" runs", p.started(tk.ID))
	}
	server.SetError("redis is out")
	b.start(t, store, p.worker("b"), withRedis)
	eventually(t, "turns run anew at the next owner", func() bool {
		for _, tk := range tasks {
			if p.startsOf(tk.ID) == "[a b]" {
				return true
			}
		}
		return false
	})
}

func TestWithdrawLeavesWhatAnotherIncarnationHasAnnounced(t *testing.T) {
	client, _ := newRedis(t)
	one, two := newHandover(client, "p:", "x"), newHandover(client, "p:", "x")
	name := conversationName("c")
	for _, h := range []*handover{one, two} {
		if err := h.announce(t.Context(), map[int32][]turnName{3: {name}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.withdraw(t.Context(), 3, name); err != nil {
		t.Fatal(err)
	}
	got, _, err := one.read(t.Context(), []int32{3})
	if err != nil || len(got) != 1 || got[0].by != two.incarnation {
		t.Errorf("announced %+v, %v; want the other's", got, err)
	}
	if ended, orphaned, err := one.ended(t.Context(), got); err != nil || len(ended)+len(orphaned) != 0 {
		t.Errorf("ended %+v, orphaned %+v, %v", ended, orphaned, err)
	}
	if err := two.withdraw(t.Context(), 3, name); err != nil {
		t.Fatal(err)
	}
	if ended, _, err := one.ended(t.Context(), got); err != nil || len(ended) != 1 {
		t.Errorf("ended %+v, %v; want the withdrawn one", ended, err)
	}
}

func TestAllThatWaitsForAnEarlierOwnersTurnGoesOnAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, func(_ context.Context, turn *millrace.Turn) error { return turn.Result("done") }, nil)
		unkeyed := task("", 0, millrace.Normal)
		turn := announced{partition: 0, turn: taskName(unkeyed.ID), by: "another"}
		o.assign(0)
		o.holds[holdKey{0, turn.turn}] = &hold{announced: turn}
		// A sender's repeat: the task stands in the log twice, in a lane of its own each.
		o.feed(t, 0, unkeyed, unkeyed)
		synctest.Wait()
		if len(store.order) != 0 {
			t.Fatal("a task ran that an earlier owner still runs")
		}
		o.release([]announced{turn})
		synctest.Wait()
		if next := o.part(millrace.Normal, 0).tracker.next; next != 2 || o.held() != 0 {
			t.Errorf("offset %d would be committed and %d bytes are held, want 2 and 0", next, o.held())
		}
	})
}

// slowWithdrawal is a Redis hook that holds up scripts, which withdraw.
type slowWithdrawal struct{ begun, goOn chan struct{} }

func (slowWithdrawal) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s slowWithdrawal) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if cmd.Name() == "evalsha" {
			s.begun <- struct{}{}
			<-s.goOn
		}
		return next(ctx, cmd)
	}
}

func (slowWithdrawal) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestALateWithdrawalSparesTheNextTurnsAnnouncement(t *testing.T) {
	client, server := newRedis(t)
	hook := slowWithdrawal{begun: make(chan struct{}, 4), goOn: make(chan struct{})}
	client.AddHook(hook)
	p, first, second := newPace(t), task("c", 0, millrace.Normal), task("c", 1, millrace.Normal)
	releaseFirst, releaseSecond := p.stopAt(first.ID), p.stopAt(second.ID)
	o := newOffline(t, newMemoryStore(), p.worker("a"), func(c *Config) { c.Redis = client })
	o.sendCommits = func(context.Context, *kgo.Client, map[topicPartition]offsetCommit) error { return nil }
	revoke := func() { o.onRevoked(context.Background(), nil, o.numbers(0)) }

	// The first turn is announced, and its partition comes back.
	o.assign(0)
	o.feed(t, 0, first)
	eventually(t, "the first turn runs", p.started(first.ID))
	revoke()
	o.assign(0)
	o.feed(t, 0, second)
	// It ends, and is slow to be withdrawn; the second turn starts, and the partition
	// leaves again.
	releaseFirst()
	eventually(t, "the second turn runs", p.started(second.ID))
	withdrawn, revoked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(withdrawn)
		o.withdrawEnded(context.Background())
	}()
	<-hook.begun
	go func() {
		defer close(revoked)
		revoke()
	}()
	select {
	case <-revoked:
	case <-time.After(50 * time.Millisecond): // it waits for the withdrawal
	}
	close(hook.goOn)
	<-withdrawn
	<-revoked
	reader := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer reader.Close()
	got, _, err := newHandover(reader, "millrace:", "default").read(t.Context(), []int32{0})
	if err != nil || len(got) != 1 || got[0].turn != conversationName("c") {
		t.Errorf("the next owner reads %+v, %v; want the second turn", got, err)
	}
	releaseSecond()
}

// lostAnswers is a Redis hook under which pipelines with a command are carried out,
// and nobody learns of it.
type lostAnswers struct{ command string }

func (lostAnswers) DialHook(next redis.DialHook) redis.DialHook { return next }

func (lostAnswers) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (l lostAnswers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if slices.ContainsFunc(cmds, func(c redis.Cmder) bool { return c.Name() == l.command }) {
			return errors.Join(err, errors.New("the answer was lost"))
		}
		return err
	}
}

// The next owner would wait for it as long as this worker lives.
func TestAnnouncementWhoseAnswerWasLostIsTakenBack(t *testing.T) {
	client, server := newRedis(t)
	client.AddHook(lostAnswers{"hset"})
	p, tk := newPace(t), task("c", 0, millrace.Normal)
	defer p.stopAt(tk.ID)()
	o := newOffline(t, newMemoryStore(), p.worker("a"), func(c *Config) { c.Redis, c.RevokeGrace = client, time.Millisecond })
	o.sendCommits = func(context.Context, *kgo.Client, map[topicPartition]offsetCommit) error { return nil }
	o.assign(0)
	o.feed(t, 0, tk)
	eventually(t, "it runs", p.started(tk.ID))
	o.onRevoked(t.Context(), nil, o.numbers(0))
	o.withdrawEnded(t.Context())
	reader := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer reader.Close()
	if got, _, err := newHandover(reader, "millrace:", "default").read(t.Context(), []int32{0}); err != nil || len(got) != 0 {
		t.Errorf("the next owner reads %+v, %v", got, err)
	}
}
