//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// sentTask is a task that the API has accepted.
type sentTask struct {
	id           string
	conversation string
	priority     string
	// content is what the user message of its turn must hold.
	content    string
	acceptedAt time.Time
}

// load says what is sent: conversations whose turns are sent one after another,
// all conversations side by side. Of four conversations one has turns of each
// priority alone and one has them mixed.
type load struct {
	conversations int
	// turns of each conversation; 0 goes on until the load is stopped.
	turns int
	// rate bounds the tasks sent in a second, over all conversations.
	rate int
}

// senders send at once. A conversation belongs to one of them.
const senders = 16

// running is a load under way.
type running struct {
	p        *pipeline
	load     load
	http     *http.Client
	stopped  chan struct{}
	stopOnce sync.Once
	wg       sync.WaitGroup
	accepted atomic.Int64
	retried  atomic.Int64

	mu   sync.Mutex
	sent map[string][]sentTask // by conversation, in the order of sending
}

// send puts a load on the pipeline.
func (p *pipeline) send(l load) *running {
	transport := &http.Transport{MaxIdleConnsPerHost: senders}
	r := &running{
		p: p, load: l, stopped: make(chan struct{}), sent: make(map[string][]sentTask),
		http: &http.Client{Timeout: 30 * time.Second, Transport: transport},
	}
	p.t.Cleanup(func() {
		r.stop()
		transport.CloseIdleConnections()
	})
	for s := range senders {
		r.wg.Go(func() { r.sender(p.t.Context(), s) })
	}
	return r
}

// stop lets every sender finish the task that it is sending.
func (r *running) stop() {
	r.stopOnce.Do(func() { close(r.stopped) })
	r.wg.Wait()
}

// wait returns all that was accepted, once the load is through.
func (r *running) wait() map[string][]sentTask {
	r.wg.Wait()
	return r.sent
}

func (r *running) sender(ctx context.Context, s int) {
	pace := time.NewTicker(time.Second * senders / time.Duration(r.load.rate))
	defer pace.Stop()
	for turn := 0; r.load.turns == 0 || turn < r.load.turns; turn++ {
		for c := s; c < r.load.conversations; c += senders {
			select {
			case <-pace.C:
			case <-r.stopped:
				return
			}
			if err := r.one(ctx, c, turn); err != nil {
				r.p.t.Errorf("conversation %d, turn %d: %v", c, turn, err)
				return
			}
		}
	}
}

// one sends a turn until it is accepted. Its key makes the repeats one task.
func (r *running) one(ctx context.Context, c, turn int) error {
	priority := c % 4
	if priority == len(priorities) {
		priority = turn % len(priorities)
	}
	task := sentTask{
		conversation: fmt.Sprintf("conversation-%04d", c),
		priority:     priorities[priority],
		content:      fmt.Sprintf(`{"text":"turn %d of conversation %d"}`, turn, c),
	}
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		var err error
		task.id, err = submit(ctx, r.http, *r.p.api.Load(), fmt.Sprintf("%s/%d", task.conversation, turn), taskBody{
			Conversation: task.conversation, Type: "scenario", Priority: task.priority, Payload: json.RawMessage(task.content),
		})
		if err == nil {
			break
		}
		var refused *problem
		if errors.As(err, &refused) && refused.Status != http.StatusTooManyRequests && refused.Status != http.StatusServiceUnavailable {
			return err
		}
		r.retried.Add(1)
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("never accepted: %w", err)
		}
	}
	task.acceptedAt = time.Now()
	r.accepted.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent[task.conversation] = append(r.sent[task.conversation], task)
	return nil
}

// slowEcho serves a handler that does what the echo handler does and takes 20 to
// 50 ms for it, so that a worker that dies has turns running. It returns the
// settings of workers that use it.
func slowEcho(t testing.TB) []string {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var turn struct {
			Task struct {
				Payload json.RawMessage `json:"payload"`
			} `json:"task"`
		}
		if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		work := time.NewTimer(20*time.Millisecond + rand.N(30*time.Millisecond))
		defer work.Stop()
		select {
		case <-work.C:
		case <-r.Context().Done():
			return
		}
		said := string(turn.Task.Payload)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"messages": []message{{"user", said}, {"assistant", said}},
			"result":   turn.Task.Payload,
		})
	}))
	t.Cleanup(server.Close)
	return []string{"MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL=" + server.URL}
}
