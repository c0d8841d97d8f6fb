//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// A worker is frozen in the middle of its turns until its session is over and
// others run them again, and wakes. Its turns and theirs leave one set of effects,
// it commits no offset of a partition that it has lost, and the second runs are
// counted.
//
// While it wakes, the handler holds up all turns of the other workers. So no task
// of a partition that the zombie has lost and does not get back is finished but by
// the zombie: an offset that moves there was committed by it.
func TestZombie(t *testing.T) {
	o := observe(t, time.Second)
	p := newPipeline(t, services{}, "MILLRACE_SLOTS=200")
	p.startIngest()
	zombie := p.launch("worker", o.worker("zombie")...)
	one := p.start("worker", o.worker("one")...)
	zombie.ready()
	lost := p.awaitShares("zombie", "one")["zombie"]
	running := p.send(load{conversations: 120, turns: 4, rate: 300})
	eventually(t, settlePatience, "the zombie runs turns", func() error { return atLeast(len(o.runningAt("zombie")), 30) })
	zombie.signal(syscall.SIGSTOP)
	open := o.shut("zombie")
	t.Cleanup(open)
	frozen := time.Now()
	ran := o.runningAt("zombie")
	// A third worker, so that the zombie does not get back all that it has lost.
	two := p.start("worker", o.worker("two")...)
	shares := p.awaitShares("one", "two")
	if len(shares["zombie"]) > 0 {
		t.Fatalf("the zombie is still a member: %v", shares)
	}
	t.Cleanup(func() {
		if t.Failed() {
			o.explainMissing(ran, frozen, one, two)
		}
	})
	eventually(t, settlePatience, "others run the zombie's turns again", func() error {
		starts, missing := o.startedElsewhere("zombie", frozen), 0
		for _, c := range ran {
			if _, again := starts[c.task]; !again {
				missing++
			}
		}
		return atLeast(len(ran)-missing, len(ran))
	})
	t.Logf("%d turns ran at the zombie; all run elsewhere %s after it froze", len(ran), time.Since(frozen).Round(time.Millisecond))

	before := p.offsets(t.Context(), lost)
	zombie.signal(syscall.SIGCONT)
	back := p.awaitShares("zombie", "one", "two")["zombie"]
	gone := maps.Clone(lost)
	for n := range back {
		delete(gone, n)
	}
	if len(gone) == 0 {
		t.Fatal("the zombie got back all that it had lost: the test shows nothing")
	}
	pass(t, 2*time.Second) // of its commits, one every half second
	after := p.offsets(t.Context(), lost)
	for n := range p.awaitShares("zombie", "one", "two")["zombie"] {
		delete(gone, n) // a rebalance may take several rounds
	}
	for tp, offset := range after {
		if gone[tp.Partition] && offset != before[tp] {
			t.Errorf("%s/%d was committed at %d when the zombie woke, at %d afterwards", tp.Topic, tp.Partition, before[tp], offset)
		}
	}
	open()
	sent := running.wait()
	p.check(t, sent)

	runs, tasks := 0, make(map[string]bool)
	for _, c := range o.seen() {
		runs++
		tasks[c.task] = true
	}
	var counted float64
	for _, w := range []*process{zombie, one, two} {
		n, err := w.counted("millrace_consumer_turns_total", `outcome="already_completed"`, `outcome="interrupted"`, `outcome="conflict"`)
		if err != nil {
			t.Fatal(err)
		}
		counted += n
	}
	t.Logf("%d turns of %d tasks: %d ran again, %.0f counted as interrupted, already completed or in conflict; the zombie lost %d partitions for good",
		runs, len(tasks), runs-len(tasks), counted, len(gone))
	if again := runs - len(tasks); again < len(ran) || int(counted) < again {
		t.Errorf("%d second runs, of which %.0f are counted, want all, and at least %d", again, counted, len(ran))
	}
}

// explainMissing logs what workers say of the turns that none of them has started.
func (o *observer) explainMissing(ran []call, since time.Time, workers ...*process) {
	starts := o.startedElsewhere("zombie", since)
	for _, c := range ran {
		if _, again := starts[c.task]; again {
			continue
		}
		for _, w := range workers {
			var said json.RawMessage
			err := get(w.url()+"/v1/tasks/"+c.task+"/explain", http.StatusOK, &said)
			w.t.Logf("%s of %s: %s says %s (%v)", c.task, c.conversation, w.name, said, err)
		}
	}
}

type topicPartition = struct {
	Topic     string
	Partition int32
}

// offsets returns what the group has committed of partition numbers.
func (p *pipeline) offsets(ctx context.Context, numbers map[int32]bool) map[topicPartition]int64 {
	p.t.Helper()
	committed, err := p.admin.FetchOffsets(ctx, p.group())
	if err != nil {
		p.t.Fatal(fmt.Errorf("fetch offsets: %w", err))
	}
	out := make(map[topicPartition]int64)
	committed.Each(func(o kadm.OffsetResponse) {
		if numbers[o.Partition] {
			out[topicPartition{o.Topic, o.Partition}] = o.At
		}
	})
	return out
}
