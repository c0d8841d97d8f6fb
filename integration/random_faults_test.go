//go:build integration

package integration

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// Workers and a relay meet faults in random order while the load goes on: killed,
// told to stop, frozen for longer than their sessions last.
func TestWorkersKilledRandomly(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := newPipeline(t, services{}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	workers := p.startWorkers(3)
	relay := p.start("relay")
	p.startIngest()
	running := p.send(load{conversations: 240, rate: 120})

	// Each kind comes at least once, further ones as they fall.
	faults := []string{"kill worker", "kill relay", "terminate worker", "freeze worker"}
	faults = append(faults, faults[random.IntN(len(faults))])
	random.Shuffle(len(faults), func(a, b int) { faults[a], faults[b] = faults[b], faults[a] })
	for _, fault := range faults {
		p.awaitProgress(60)
		victim := random.IntN(len(workers))
		t.Logf("%s: %s (worker %d)", time.Now().Format(time.TimeOnly), fault, victim)
		switch fault {
		case "kill worker":
			workers[victim].kill()
			workers[victim] = p.start("worker", fmt.Sprintf("MILLRACE_WORKER_NAME=again-%d", random.Uint32()))
		case "kill relay":
			relay.kill()
			relay = p.start("relay")
		case "terminate worker":
			workers[victim].terminate()
			workers[victim] = p.start("worker")
		case "freeze worker":
			workers[victim].signal(syscall.SIGSTOP)
			pass(t, 8*time.Second)
			workers[victim].signal(syscall.SIGCONT)
		}
	}
	p.awaitProgress(60)
	running.stop()
	p.check(t, running.wait())
	for _, process := range append(workers, relay) {
		process.awaitReadyz()
	}
}

// awaitProgress waits until so many more tasks are done.
func (p *pipeline) awaitProgress(n int) {
	p.t.Helper()
	done, err := p.count(p.t.Context(), "completions")
	if err != nil {
		p.t.Fatal(err)
	}
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
