package consumer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"millrace"
)

// die plays a worker that dies while it runs turns: their marks stay, and the key
// that says that it lives does not.
func die(t *testing.T, client *redis.Client, alone bool, tasks ...millrace.Task) (incarnation string) {
	t.Helper()
	h := newHandover(client, "millrace:", "default")
	var marks []mark
	for _, n := range everywhere() { // the test does not know which partition is whose
		for _, tk := range tasks {
			name := conversationName(tk.Conversation)
			if tk.Conversation == "" {
				name = taskName(tk.ID)
			}
			marks = append(marks, mark{key: noteKey{n, taskField(tk.Key())}, turn: name, alone: alone})
		}
	}
	if err := h.mark(t.Context(), marks); err != nil {
		t.Fatal(err)
	}
	if err := client.Del(t.Context(), h.alive(h.incarnation)).Err(); err != nil {
		t.Fatal(err)
	}
	return h.incarnation
}

// company is a handler that notes who runs beside whom.
type company struct {
	mu      sync.Mutex
	running map[string]bool
	beside  map[string][]string // task -> others that ran while it did
	runs    map[string]int
}

func newCompany() *company {
	return &company{running: make(map[string]bool), beside: make(map[string][]string), runs: make(map[string]int)}
}

func (c *company) work(d time.Duration) millrace.HandlerFunc {
	return func(ctx context.Context, turn *millrace.Turn) error {
		id := turn.Task().ID
		c.mu.Lock()
		c.runs[id]++
		for other := range c.running {
			c.beside[id] = append(c.beside[id], other)
			c.beside[other] = append(c.beside[other], id)
		}
		c.running[id] = true
		c.mu.Unlock()
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.running, id)
		return ctx.Err()
	}
}

func TestWhoSharedTwoDeathsRunsAloneAndWhoSharedOneDoesNot(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	var once, twice, all []millrace.Task
	for i := range 12 {
		once = append(once, task(fmt.Sprintf("once%d", i), 0, millrace.Normal))
	}
	for i := range 3 {
		twice = append(twice, task(fmt.Sprintf("twice%d", i), 0, millrace.Normal))
	}
	twice = append(twice, task("", 99, millrace.Normal)) // without a conversation
	die(t, client, false, append(slices.Clone(once), twice...)...)
	survivor := newHandover(client, "millrace:", "default")
	for _, n := range everywhere() {
		turns, _, err := survivor.read(t.Context(), []int32{n})
		if err != nil || len(turns) != len(once)+len(twice) {
			t.Fatalf("read %d turns, %v", len(turns), err)
		}
		if _, err := survivor.bury(t.Context(), n, turns[0].by); err != nil {
			t.Fatal(err)
		}
	}
	// The second death is found by the worker under test. A third and fourth among
	// others change nothing.
	die(t, client, false, twice...)
	all = append(append(all, once...), twice...)
	for i := range 20 {
		all = append(all, task(fmt.Sprintf("fresh%d", i), 0, millrace.Normal))
	}
	b.send(t, all...)
	c := newCompany()
	engine, _ := b.start(t, store, c.work(20*time.Millisecond), func(cfg *Config) { cfg.Redis = client })
	for _, done := range store.await(t, len(all)) {
		if done.Status != millrace.StatusCompleted || done.Attempts != 1 {
			t.Errorf("%s ended %s after %d attempts, want completed after 1", done.Task.ID, done.Status, done.Attempts)
		}
	}
	c.mu.Lock()
	for _, tk := range twice {
		if len(c.beside[tk.ID]) != 0 {
			t.Errorf("suspect %s ran beside %v", tk.ID, c.beside[tk.ID])
		}
	}
	beside := 0
	for _, tk := range once {
		beside += len(c.beside[tk.ID])
	}
	for id, n := range c.runs {
		if n != 1 {
			t.Errorf("%s ran %d times", id, n)
		}
	}
	c.mu.Unlock()
	if beside == 0 {
		t.Error("those that shared one death ran alone too")
	}
	if n := testutil.ToFloat64(engine.metrics.aloneTurns); int(n) != len(twice) {
		t.Errorf("%v turns counted as run alone, want %d", n, len(twice))
	}
	eventually(t, "nothing is left of tasks that are done", func() bool {
		for field := range pasts(t, client) {
			if strings.HasPrefix(field, "0:") {
				return false
			}
		}
		engine.mu.Lock()
		defer engine.mu.Unlock()
		return len(engine.notes) == 0
	})
}

func TestTheThirdDeathAloneMakesADeadLetterAndClearsTheOthers(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	killer := task("killer", 0, millrace.Normal)
	var innocent []millrace.Task
	for i := range 10 {
		innocent = append(innocent, task(fmt.Sprintf("innocent%d", i), 0, millrace.Normal))
	}
	survivor := newHandover(client, "millrace:", "default")
	bury := func(by string) {
		for _, n := range everywhere() {
			if _, err := survivor.bury(t.Context(), n, by); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		bury(die(t, client, false, append(slices.Clone(innocent), killer)...))
	}
	last := die(t, client, true, killer)
	b.send(t, append(slices.Clone(innocent), killer)...)
	c := newCompany()
	engine, _ := b.start(t, store, c.work(50*time.Millisecond), func(cfg *Config) {
		cfg.Redis = client
		cfg.Slots = 1 // the killer is given up in a slot, like everything else
	})
	for _, done := range store.await(t, len(innocent)+1) {
		switch {
		case done.Task.ID == killer.ID:
			if done.DeadLetter == nil || done.DeadLetter.Reason != millrace.ReasonKilledWorkers || done.Attempts != 3 ||
				!strings.Contains(done.DeadLetter.Detail, last) {
				t.Errorf("the killer ended as %+v after %d attempts, want a dead letter of 3 that names %s", done.DeadLetter, done.Attempts, last)
			}
		case done.Status != millrace.StatusCompleted:
			t.Errorf("%s ended %s: %s", done.Task.ID, done.Status, done.Error)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs[killer.ID] != 0 {
		t.Errorf("the killer ran %d times more", c.runs[killer.ID])
	}
	// Whether some ran alone before the killer was given up is chance; not all did.
	if n := testutil.ToFloat64(engine.metrics.aloneTurns); int(n) >= len(innocent) {
		t.Errorf("%v of %d innocents ran alone after the killer was known", n, len(innocent))
	}
}

func TestSuspectsAreClearedWhenTheKillerIsFoundElsewhere(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	survivor := newHandover(client, "millrace:", "default")
	busy, suspect := task("busy", 0, millrace.Normal), task("suspect", 0, millrace.Normal)
	var dead []string
	for range 2 {
		dead = append(dead, die(t, client, false, suspect))
		for _, n := range everywhere() {
			if _, err := survivor.bury(t.Context(), n, dead[len(dead)-1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := newPace(t)
	release := p.stopAt(busy.ID)
	defer release()
	b.send(t, suspect, busy)
	held := p.stopAt(suspect.ID)
	engine, _ := b.start(t, store, p.worker("a"), func(c *Config) { c.Redis = client })
	eventually(t, "the suspect runs alone", p.started(suspect.ID))
	held()
	store.await(t, 1)
	// One more, while a turn runs that does not end.
	eventually(t, "another turn runs", p.started(busy.ID))
	again := task("suspect", 1, millrace.Normal)
	notes := make(map[noteKey]note)
	words := deaths("s" + dead[0] + " s" + dead[1] + " ")
	for _, n := range everywhere() {
		notes[noteKey{n, taskField(again.Key())}] = note{deaths: &words}
	}
	if err := survivor.write(t.Context(), notes); err != nil {
		t.Fatal(err)
	}
	engine.mu.Lock()
	it := &item{task: again, deaths: words, recorded: true, part: engine.parts[topicPartition{Topic("t.", millrace.Normal), 0}]}
	it.priority = it.part.priority
	engine.queue(it, time.Now())
	waiting := len(engine.suspects.waiting)
	engine.mu.Unlock()
	if waiting != 1 {
		t.Fatalf("%d suspects wait, want 1", waiting)
	}
	if err := survivor.explain(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs beside the other", p.started(again.ID))
}

func TestADeathCountsOnceAndSharedOnesNoMoreThanTwice(t *testing.T) {
	client, _ := newRedis(t)
	h := newHandover(client, "millrace:", "default")
	tk := task("c", 0, millrace.Normal)
	count := func() int {
		return deaths(client.HGet(t.Context(), h.pasts(0), "d:"+taskField(tk.Key())).Val()).count()
	}
	for i, want := range []int{1, 2, 2, 2} {
		by := die(t, client, false, tk)
		for range 2 { // two owners may find the same dead incarnation
			if _, err := h.bury(t.Context(), 0, by); err != nil {
				t.Fatal(err)
			}
		}
		if got := count(); got != want {
			t.Errorf("after %d shared deaths %d count, want %d", i+1, got, want)
		}
	}
	got, err := h.bury(t.Context(), 0, die(t, client, true, tk))
	if d := got[taskField(tk.Key())]; err != nil || count() != 3 || !d.killer() || d.suspect() {
		t.Errorf("a death alone makes %q, %v; want a killer", d, err)
	}
}

func TestAWorkerThatOnlyStoodStillTakesItsDeathBack(t *testing.T) {
	client, _ := newRedis(t)
	stopped, dead, next := newHandover(client, "p:", "x"), newHandover(client, "p:", "x"), newHandover(client, "p:", "x")
	key := noteKey{4, "0:t"}
	for _, h := range []*handover{dead, stopped} {
		if err := h.mark(t.Context(), []mark{{key: key, turn: conversationName("c d")}}); err != nil {
			t.Fatal(err)
		}
		if _, err := next.bury(t.Context(), 4, h.incarnation); err != nil {
			t.Fatal(err)
		}
	}
	if err := stopped.write(t.Context(), map[noteKey]note{key: {unmark: true}}); err != nil {
		t.Fatal(err)
	}
	got := deaths(client.HGet(t.Context(), next.pasts(4), "d:0:t").Val())
	if want := deaths("s" + dead.incarnation + " "); got != want {
		t.Errorf("deaths %q, want only that of the one that is dead: %q", got, want)
	}
	if err := dead.write(t.Context(), map[noteKey]note{key: {unmark: true}}); err != nil {
		t.Fatal(err)
	}
	if left := client.Exists(t.Context(), next.pasts(4)).Val(); left != 0 {
		t.Error("a past without deaths is kept")
	}
}

func TestLongTurnsAreMarkedAsLongAsTheyRun(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	long, unkeyed, short := task("long", 0, millrace.Normal), task("", 5, millrace.Normal), task("short", 0, millrace.Normal)
	p := newPace(t)
	releases := []func(){p.stopAt(long.ID), p.stopAt(unkeyed.ID)}
	b.send(t, long, unkeyed, short)
	engine, _ := b.start(t, store, p.worker("a"), func(c *Config) { c.Redis = client })
	eventually(t, "the long turns are marked", func() bool { return len(pasts(t, client)) == 2 })
	for task, name := range map[string]string{"0:" + long.ID: "c:long", "0:" + unkeyed.ID: "t:" + unkeyed.ID} {
		if got, want := pasts(t, client)[task], engine.handover.incarnation+" s "+name; got != want {
			t.Errorf("mark of %s is %q, want %q", task, got, want)
		}
	}
	for _, release := range releases {
		release()
	}
	store.await(t, 3)
	eventually(t, "the marks are gone", func() bool { return len(pasts(t, client)) == 0 })
}

func TestTurnsAreMarkedBeforeTheyStartWhereTheOwnerHasDied(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, client *redis.Client, h *handover)
		want   bool
	}{
		{"died", func(t *testing.T, client *redis.Client, h *handover) {
			if err := client.Del(t.Context(), h.alive(h.incarnation)).Err(); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"lives", func(*testing.T, *redis.Client, *handover) {}, false},
		{"gave them up and ended", func(t *testing.T, client *redis.Client, h *handover) {
			if err := errors.Join(h.disown(t.Context(), everywhere()), client.Del(t.Context(), h.alive(h.incarnation)).Err()); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, store := newBroker(t), newMemoryStore()
			client, _ := newRedis(t)
			h := newHandover(client, "millrace:", "default")
			_, err := h.own(t.Context(), everywhere())
			if err := errors.Join(err, h.mark(t.Context(), nil)); err != nil {
				t.Fatal(err)
			}
			tt.before(t, client, h)
			tk := task("c", 0, millrace.Normal)
			b.send(t, tk)
			marked := make(chan bool, 10)
			b.start(t, store, func(_ context.Context, turn *millrace.Turn) error {
				_, ok := pasts(t, client)["0:"+turn.Task().ID]
				marked <- ok
				return nil
			}, func(c *Config) { c.Redis = client })
			store.await(t, 1)
			if got := <-marked; got != tt.want {
				t.Errorf("marked before it started: %v, want %v", got, tt.want)
			}
			eventually(t, "no mark is left", func() bool { return len(pasts(t, client)) == 0 })
			b.send(t, task("c", 1, millrace.Normal)) // nobody has run that one
			store.await(t, 2)
			if <-marked {
				t.Error("a turn is marked early that no earlier owner can have run")
			}
		})
	}
}

func TestAWorkerThatIsStoppedLeavesNoMarkOfWhatStillRuns(t *testing.T) {
	t.Parallel()
	b, store := newBroker(t), newMemoryStore()
	client, _ := newRedis(t)
	running, release := make(chan struct{}), make(chan struct{})
	b.send(t, task("long", 0, millrace.Normal))
	engine, stop := b.start(t, store, func(context.Context, *millrace.Turn) error {
		close(running)
		<-release // whatever its context says
		return errors.New("too late")
	}, func(c *Config) { c.Redis = client })
	<-running
	eventually(t, "the turn is marked", func() bool { return len(pasts(t, client)) == 1 })
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	eventually(t, "the mark is taken back while the turn still runs", func() bool { return len(pasts(t, client)) == 0 })
	engine.mu.Lock()
	n := len(engine.running)
	engine.mu.Unlock()
	if n != 1 {
		t.Errorf("%d turns run, want the one that does not listen", n)
	}
	close(release)
	<-stopped
}

func TestATurnThatIsMarkedIsWaitedForUntilItsWorkerIsDead(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	client, server := newRedis(t)
	lost := newHandover(client, "millrace:", "default") // announces nothing: it does not know that it is out
	tk := task("c", 0, millrace.Normal)
	var marks []mark
	for _, n := range everywhere() {
		marks = append(marks, mark{key: noteKey{n, taskField(tk.Key())}, turn: conversationName("c")})
	}
	if err := lost.mark(t.Context(), marks); err != nil {
		t.Fatal(err)
	}
	engine, _ := b.start(t, store, newCompany().work(0), func(c *Config) { c.Redis = client })
	b.send(t, tk, task("free", 0, millrace.Normal))
	store.await(t, 1)
	eventually(t, "the conversation is held", func() bool { return engine.waitingIn("c") == 1 })
	if n := testutil.ToFloat64(engine.metrics.deaths); n != 0 {
		t.Errorf("%v deaths counted of a worker that lives", n)
	}
	server.FastForward(aliveFor + time.Second)
	if got, want := ids(store.await(t, 2)), "[free/normal/0 c/normal/0]"; got != want {
		t.Errorf("completed %s, want %s", got, want)
	}
	if n := testutil.ToFloat64(engine.metrics.deaths); n == 0 {
		t.Error("no death counted of a worker that is dead")
	}
}

// suspected feeds a task that two workers died of.
func (o *offline) suspected(t *testing.T, number int32, tk millrace.Task) {
	t.Helper()
	it := &item{task: tk, deaths: "sone stwo "}
	tp := topicPartition{Topic("t.", tk.Priority), number}
	it.offset = o.offsets[tp]
	o.offsets[tp]++
	o.enqueue(tp, [16]byte{}, 0, []*item{it})
}

func TestASuspectWaitsForThoseThatRunAndHoldsUpThoseThatDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, nil)
		o.assign(0, 1)
		o.feed(t, 0, task("a", 0, millrace.Normal), task("b", 0, millrace.Normal))
		synctest.Wait()
		o.suspected(t, 0, task("s", 0, millrace.Batch))
		o.feed(t, 0, task("c", 0, millrace.High), task("a", 1, millrace.Normal))
		if got, want := g.ranInAnyOrder(), "[a/normal/0 b/normal/0]"; got != want {
			t.Errorf("ran %s, want %s: a suspect waits to run alone", got, want)
		}
		g.release("a/normal/0")
		if got, want := g.ranInAnyOrder(), "[a/normal/0 b/normal/0]"; got != want {
			t.Errorf("ran %s, want %s", got, want)
		}
		g.release("b/normal/0")
		if got, want := g.ranInAnyOrder(), "[a/normal/0 b/normal/0 s/batch/0]"; got != want {
			t.Errorf("ran %s, want the suspect and nobody else beside it: %s", got, want)
		}
		g.release("s/batch/0")
		if got, want := g.ranInAnyOrder(), "[a/normal/0 a/normal/1 b/normal/0 c/high/0 s/batch/0]"; got != want {
			t.Errorf("ran %s, want all: %s", got, want)
		}
	})
}

func TestASuspectThatIsTakenAwayHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, nil)
		o.assign(0, 1)
		o.feed(t, 0, task("a", 0, millrace.Normal))
		synctest.Wait()
		o.suspected(t, 1, task("s", 0, millrace.Normal))
		o.feed(t, 0, task("b", 0, millrace.Normal))
		if got := g.ran(); got != "[a/normal/0]" {
			t.Errorf("ran %s", got)
		}
		o.lose(1)
		if got, want := g.ran(), "[a/normal/0 b/normal/0]"; got != want {
			t.Errorf("ran %s, want %s", got, want)
		}
	})
}

func TestBetweenTwoSuspectsOthersRunForAsLongAsTheyHadToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		o := newOffline(t, newMemoryStore(), g.handle, nil)
		o.assign(0)
		o.suspected(t, 0, task("s", 0, millrace.Normal))
		o.suspected(t, 0, task("t", 0, millrace.Normal))
		o.suspected(t, 0, task("u", 0, millrace.Normal))
		o.feed(t, 0, task("a", 0, millrace.Normal))
		<-time.After(10 * time.Second)
		if got := g.ran(); got != "[s/normal/0]" {
			t.Errorf("ran %s, want one suspect", got)
		}
		g.release("s/normal/0")
		<-time.After(4 * time.Second)
		o.feed(t, 0, task("b", 0, millrace.Normal))
		if got, want := g.ran(), "[s/normal/0 a/normal/0 b/normal/0]"; got != want {
			t.Errorf("ran %s, want %s", got, want)
		}
		<-time.After(7 * time.Second)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		g.release("a/normal/0")
		if got, want := g.ran(), "[s/normal/0 a/normal/0 b/normal/0]"; got != want {
			t.Errorf("ran %s, want nobody to start any more: %s", got, want)
		}
		g.release("b/normal/0")
		if got, want := g.ran(), "[s/normal/0 a/normal/0 b/normal/0 t/normal/0]"; got != want {
			t.Errorf("ran %s, want the second suspect: %s", got, want)
		}
		g.release("t/normal/0")
		g.release("c/normal/0") // nobody is left whose time it is
		if got, want := g.ran(), "[s/normal/0 a/normal/0 b/normal/0 t/normal/0 c/normal/0 u/normal/0]"; got != want {
			t.Errorf("ran %s, want the third suspect at once: %s", got, want)
		}
	})
}

func TestASuspectThatFailsIsTriedAgainAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, tries := newMemoryStore(), 0
		var together atomic.Int32
		o := newOffline(t, store, func(_ context.Context, turn *millrace.Turn) error {
			n := together.Add(1)
			defer together.Add(-1)
			if turn.Task().Conversation == "s" {
				if tries++; n != 1 {
					t.Error("it runs beside another turn")
				}
				<-time.After(2 * time.Second)
				if tries == 1 {
					return errors.New("not yet")
				}
			}
			return nil
		}, nil)
		o.assign(0)
		o.suspected(t, 0, task("s", 0, millrace.Normal))
		for i := range 5 {
			o.feed(t, 0, task(fmt.Sprint("c", i), 0, millrace.Normal))
		}
		done := store.await(t, 6)
		if last := done[5]; last.Task.Conversation != "s" || last.Attempts != 2 || last.Status != millrace.StatusCompleted {
			t.Errorf("%s ended last, %s after %d attempts, want the suspect, completed after 2", last.Task.ID, last.Status, last.Attempts)
		}
	})
}

func TestMarkWhoseAnswerWasLostIsTakenBack(t *testing.T) {
	client, server := newRedis(t)
	client.AddHook(lostAnswers{"hset"})
	p, tk := newPace(t), task("c", 0, millrace.Normal)
	release := p.stopAt(tk.ID)
	store := newMemoryStore()
	o := newOffline(t, store, p.worker("a"), func(c *Config) { c.Redis = client })
	o.assign(0)
	o.feed(t, 0, tk)
	eventually(t, "it runs", p.started(tk.ID))
	o.mu.Lock()
	o.running[0].run.since = time.Now().Add(-markAfter)
	o.mu.Unlock()
	o.markLong(t.Context())
	release()
	eventually(t, "its turn has ended", func() bool { return len(store.await(t, 1)) == 1 && o.held() == 0 })
	o.withdrawEnded(t.Context())
	reader := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer reader.Close()
	if got, _, err := newHandover(reader, "millrace:", "default").read(t.Context(), []int32{0}); err != nil || len(got) != 0 {
		t.Errorf("the next owner reads %+v, %v", got, err)
	}
}
