//go:build integration

package integration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"millrace/internal/testenv"
)

// chained is the state after a turn that has seen a state and a history: every
// state stands for all that its conversation's turns have seen.
func chained(conversation, state string, history []string, said string) string {
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", conversation, state, history, said)))
}

// newChain serves a handler that sets such states.
func newChain(t testing.TB) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var turn struct {
			Conversation string `json:"conversation"`
			State        string `json:"state"`
			History      []struct {
				Content string `json:"content"`
			} `json:"history"`
			Task struct {
				Payload json.RawMessage `json:"payload"`
			} `json:"task"`
		}
		if err := json.NewDecoder(r.Body).Decode(&turn); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var history []string
		for _, m := range turn.History {
			history = append(history, m.Content)
		}
		said := string(turn.Task.Payload)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"messages": []map[string]string{{"role": "user", "content": said}, {"role": "assistant", "content": said}},
			"result":   turn.Task.Payload,
			"state":    chained(turn.Conversation, turn.State, history, said),
		})
	}))
	t.Cleanup(server.Close)
	return server
}

// Under load Redis has hot copies of other conversations, of earlier turns, ahead of
// their conversations, and none. Every turn commits on what it should have seen.
func TestRedisLies(t *testing.T) {
	server := testenv.StartRedis(t)
	options, err := redis.ParseURL(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	t.Cleanup(func() { _ = client.Close() })

	p := newPipeline(t, services{redis: server.URL}, "MILLRACE_HANDLER=http", "MILLRACE_HANDLER_URL="+newChain(t).URL, "MILLRACE_SLOTS=8", "MILLRACE_CACHE_BYTES=0")
	worker := p.startWorkers(1)[0]
	p.startIngest()
	const conversations, turns = 60, 8
	running := p.send(load{conversations: conversations, turns: turns, rate: 80})

	lying, stop := context.WithCancel(t.Context())
	var liar sync.WaitGroup
	liar.Go(func() { t.Logf("%d lies", lie(lying, client, strings.TrimSuffix(p.prefix, ".")+":", conversations)) })
	sent := running.wait()
	stop()
	liar.Wait()
	e := p.check(t, sent)
	conflicts := worker.metric(t, "millrace_consumer_second_runs_total")
	t.Logf("%v conflicts", conflicts)
	if conflicts == 0 {
		t.Error("no turn has believed a lie")
	}
	states := make(map[string]string)
	err = p.query(t.Context(), `SELECT id, state #>> '{}' FROM millrace.conversations`, func(rows pgx.Rows) error {
		var id, state string
		err := rows.Scan(&id, &state)
		states[id] = state
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for id, state := range states {
		var history []string
		for _, m := range e.messages[id] {
			history = append(history, m.content)
		}
		want := ""
		for i := 0; i < len(history); i += 2 {
			want = chained(id, want, history[:i:i], history[i])
		}
		if state != want {
			t.Errorf("a turn of %s has seen something else than there was", id)
		}
	}
	if len(states) != conversations {
		t.Errorf("%d conversations, want %d", len(states), conversations)
	}
}

// lie changes hot copies until ctx ends and returns how many it has changed. It makes
// none that nobody can tell: another list beside the right hash, or other content at
// the right version.
func lie(ctx context.Context, client *redis.Client, prefix string, conversations int) (lies int) {
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	anyOf := func() string { return fmt.Sprintf("%shot:{conversation-%04d}", prefix, rand.N(conversations)) }
	old := make(map[string]string) // dumps of copies as they were
	for {
		select {
		case <-ctx.Done():
			return lies
		case <-tick.C:
		}
		key := anyOf()
		var err error
		switch rand.N(5) {
		case 0: // another conversation's
			err = client.Copy(ctx, anyOf(), key, client.Options().DB, true).Err()
		case 1:
			if dump, err := client.Dump(ctx, key).Result(); err == nil {
				old[key] = dump
			}
			continue
		case 2: // of an earlier turn
			if old[key] == "" {
				continue
			}
			err = client.RestoreReplace(ctx, key, time.Minute, old[key]).Err()
		case 3: // far ahead: one that the conversation comes up with while it lasts could not be told
			if client.Exists(ctx, key).Val() == 0 {
				continue
			}
			err = client.HIncrBy(ctx, key, "v", 100).Err()
		case 4:
			err = client.Del(ctx, key).Err()
		}
		if err == nil {
			lies++
		}
	}
}
