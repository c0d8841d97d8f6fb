//go:build integration

package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"millrace/internal/testenv"
)

// Twenty faults in random order while the load goes on: workers are killed, told
// to stop, and frozen for longer than their sessions last, the relays that own the
// outbox's shards are killed, Kafka, Redis and PostgreSQL restart, Redis loses
// everything. What must come out is judged by the results topic and PostgreSQL
// alone.
//
// MILLRACE_TEST_SEED replays the order of a seed, though not every moment of it.
func TestTwentyFaults(t *testing.T) {
	seed := rand.Uint64()
	if set := os.Getenv("MILLRACE_TEST_SEED"); set != "" {
		var err error
		if seed, err = strconv.ParseUint(set, 10, 64); err != nil {
			t.Fatalf("MILLRACE_TEST_SEED: %v", err)
		}
	}
	t.Logf("replay with MILLRACE_TEST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kafka, cache, database := testenv.StartKafka(t, nil), testenv.StartRedis(t), testenv.StartPostgres(t)
	options, err := redis.ParseURL(cache.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })
	p := newPipeline(t, services{kafka: kafka.URL, redis: cache.URL, postgres: database.URL},
		append(slowEcho(t), "MILLRACE_SLOTS=8", "MILLRACE_RELAY=off")...)
	workers := p.startWorkers(3)
	relays := []*process{p.start("relay"), p.start("relay")}
	ingest := p.startIngest()
	running := p.send(load{conversations: 240, rate: 60})
	restart := func(server *testenv.Server) {
		if err := server.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	kinds := []string{
		"kill worker", "terminate worker", "freeze worker", "kill relay", "restart Kafka", "flush Redis", "restart Redis", "restart PostgreSQL",
	}
	// Each kind comes at least once; what takes long comes no more than twice.
	faults := append([]string{}, kinds...)
	faults = append(faults, "freeze worker", "restart Kafka")
	quick := []string{"kill worker", "terminate worker", "kill relay", "flush Redis", "restart Redis", "restart PostgreSQL"}
	for len(faults) < 20 {
		faults = append(faults, quick[random.IntN(len(quick))])
	}
	random.Shuffle(len(faults), func(a, b int) { faults[a], faults[b] = faults[b], faults[a] })
	began := time.Now()
	for n, fault := range faults {
		for i := range workers {
			p.revive("worker", &workers[i])
		}
		for i := range relays {
			p.revive("relay", &relays[i])
		}
		p.awaitProgress(20)
		victim := random.IntN(len(workers))
		t.Logf("%s: fault %d, %s (worker %d)", time.Since(began).Round(100*time.Millisecond), n+1, fault, victim)
		switch fault {
		case "kill worker":
			workers[victim].kill()
			workers[victim] = p.launch("worker", fmt.Sprintf("MILLRACE_WORKER_NAME=again-%d", n))
		case "terminate worker":
			p.keepUp("worker", &workers[victim]) // one that has only just been launched has nothing to give up
			workers[victim].terminate()
			workers[victim] = p.launch("worker")
		case "freeze worker":
			workers[victim].signal(syscall.SIGSTOP)
			pass(t, 7*time.Second)
			workers[victim].signal(syscall.SIGCONT)
		case "kill relay": // each owns half of the shards
			relays[n%2].kill()
			relays[n%2] = p.launch("relay")
		case "restart Kafka":
			restart(kafka)
		case "flush Redis":
			if err := client.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		case "restart Redis":
			restart(cache)
		case "restart PostgreSQL":
			restart(database)
		}
	}
	p.awaitProgress(20)
	running.stop()
	p.check(t, running.wait())
	t.Logf("%d tasks and %d faults in %s; %d requests were sent again", running.accepted.Load(), len(faults),
		time.Since(began).Round(time.Second), running.retried.Load())
	for i := range workers {
		p.keepUp("worker", &workers[i])
	}
	for i := range relays {
		p.keepUp("relay", &relays[i])
	}
	ingest.ready()
}

// revive does what an orchestrator does: a process that has ended because a
// service was out when it started is started again.
func (p *pipeline) revive(role string, at **process) {
	p.t.Helper()
	if (*at).running() {
		return
	}
	if code := (*at).wait(time.Second); code != 1 {
		p.t.Fatalf("%s ended by itself with code %d", role, code)
	}
	p.t.Logf("%s could not start, starting it again", role)
	*at = p.launch(role)
}

// keepUp revives a process until it is ready.
func (p *pipeline) keepUp(role string, at **process) {
	p.t.Helper()
	eventually(p.t, settlePatience, role+" is ready", func() error {
		p.revive(role, at)
		if !(*at).started() {
			return errors.New("not started yet")
		}
		return get((*at).url()+"/readyz", http.StatusOK, nil)
	})
}

// awaitProgress waits until so many more tasks are done.
func (p *pipeline) awaitProgress(n int) {
	p.t.Helper()
	var done int
	eventually(p.t, settlePatience, "PostgreSQL answers", func() (err error) {
		done, err = p.count(p.t.Context(), "completions")
		return err
	})
	p.awaitCompletions(done + n)
}

// pass lets time pass, where time is what matters.
func pass(t testing.TB, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
