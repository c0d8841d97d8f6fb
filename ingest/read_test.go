package ingest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"millrace"
	"millrace/ingest"
)

// memoryStore is a Reader and Announcer over maps.
type memoryStore struct {
	mu    sync.Mutex
	tasks map[string]millrace.TaskResult
	conv  millrace.Conversation
	all   []millrace.Message
	dead  []millrace.DeadLetterEntry
	err   error
	block chan struct{} // announcements wait for it when it is set
	reads int
	read  chan struct{} // gets a token at each read of a task, if there is room
}

func (m *memoryStore) set(r millrace.TaskResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tasks == nil {
		m.tasks = make(map[string]millrace.TaskResult)
	}
	m.tasks[r.TaskID] = r
}

func (m *memoryStore) Task(_ context.Context, id string) (millrace.TaskResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	select {
	case m.read <- struct{}{}:
	default:
	}
	if r, ok := m.tasks[id]; ok || m.err != nil {
		return r, m.err
	}
	return millrace.TaskResult{}, fmt.Errorf("task %s: %w", id, millrace.ErrNotFound)
}

func (m *memoryStore) Conversation(_ context.Context, id string) (millrace.Conversation, error) {
	if id != m.conv.ID {
		return millrace.Conversation{}, millrace.ErrNotFound
	}
	return m.conv, m.err
}

func (m *memoryStore) History(_ context.Context, _ string, last int64, n int) ([]millrace.Message, error) {
	return m.all[last-int64(n) : last], m.err
}

func (m *memoryStore) DeadLetters(_ context.Context, after int64, limit int) ([]millrace.DeadLetterEntry, error) {
	var page []millrace.DeadLetterEntry
	for _, d := range m.dead {
		if d.ID > after && len(page) < limit {
			page = append(page, d)
		}
	}
	return page, m.err
}

func (m *memoryStore) Queued(ctx context.Context, tasks []millrace.Task) error {
	if m.block != nil {
		select {
		case <-m.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, t := range tasks {
		if t.Payload != nil {
			return errors.New("announced with its payload")
		}
		m.set(millrace.TaskResult{TaskID: t.ID, ConversationID: t.Conversation, Status: millrace.StatusQueued})
	}
	return nil
}

func decode[T any](t *testing.T, r *response) T {
	t.Helper()
	var v T
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	if err := json.Unmarshal(r.body, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAcceptedTaskIsSoonKnownAsQueued(t *testing.T) {
	store := &memoryStore{}
	f := start(t, func(c *ingest.Config) { c.Reader, c.Announcer = store, store })
	a := f.mustSubmit(`{"conversation":"c","type":"t","payload":1}`)
	f.stop() // passes on what is announced
	if got := decode[millrace.TaskResult](t, f.get("/v1/tasks/"+a.TaskID)); got.Status != millrace.StatusQueued {
		t.Errorf("status %q", got.Status)
	}
}

func TestSlowAnnouncerDelaysNoTask(t *testing.T) {
	store := &memoryStore{block: make(chan struct{})}
	f := start(t, func(c *ingest.Config) { c.Announcer, c.AnnounceQueue = store, 2 })
	const tasks = 300
	for range tasks {
		f.mustSubmit(`{"conversation":"c","type":"t","payload":1}`)
	}
	dropped := f.metric("millrace_ingest_announcements_dropped_total")
	close(store.block)
	f.stop()
	failed := f.metric("millrace_ingest_announcements_failed_total")
	if got := float64(len(store.tasks)); got+dropped+failed != tasks || dropped == 0 {
		t.Errorf("%v announced, %v dropped, %v failed, want %d together", got, dropped, failed, tasks)
	}
}

func TestLongPollAnswersOnceTheTaskIsFinal(t *testing.T) {
	store := &memoryStore{read: make(chan struct{}, 100)}
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	answer := make(chan *response, 1)
	go func() { answer <- f.get("/v1/tasks/t1?wait=30s") }()
	<-store.read // not known yet: waits on
	store.set(millrace.TaskResult{TaskID: "t1", Status: millrace.StatusRunning})
	for range 3 {
		<-store.read
	}
	store.set(millrace.TaskResult{TaskID: "t1", Status: millrace.StatusCompleted, Result: json.RawMessage(`{"a":[1]}`)})
	got := decode[millrace.TaskResult](t, <-answer)
	if got.Status != millrace.StatusCompleted || string(got.Result) != `{"a":[1]}` {
		t.Errorf("answer %+v", got)
	}
}

func TestLongPollEndsWithWhatIsKnown(t *testing.T) {
	store := &memoryStore{}
	store.set(millrace.TaskResult{TaskID: "t1", Status: millrace.StatusRunning})
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	if got := decode[millrace.TaskResult](t, f.get("/v1/tasks/t1?wait=30ms")); got.Status != millrace.StatusRunning {
		t.Errorf("status %q", got.Status)
	}
	if p := f.get("/v1/tasks/t2?wait=30ms").problem(t); p.Status != http.StatusNotFound {
		t.Errorf("unknown task: %+v", p)
	}
}

func TestLongPollEndsWithTheServer(t *testing.T) {
	store := &memoryStore{read: make(chan struct{}, 1)}
	store.set(millrace.TaskResult{TaskID: "t1", Status: millrace.StatusRunning})
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	answer := make(chan *response, 1)
	go func() { answer <- f.get("/v1/tasks/t1?wait=60s") }()
	<-store.read
	f.stop()
	select {
	case r := <-answer:
		if got := decode[millrace.TaskResult](t, r); got.Status != millrace.StatusRunning {
			t.Errorf("status %q", got.Status)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the long poll goes on")
	}
}

func TestLongPollsAreBounded(t *testing.T) {
	store := &memoryStore{read: make(chan struct{}, 100)}
	store.set(millrace.TaskResult{TaskID: "t1", Status: millrace.StatusRunning})
	f := start(t, func(c *ingest.Config) { c.Reader, c.MaxWaiters = store, 1 })
	answer := make(chan *response, 1)
	go func() { answer <- f.get("/v1/tasks/t1?wait=60s") }()
	<-store.read
	<-store.read // the second read: it waits
	r := f.get("/v1/tasks/t1?wait=60s")
	if p := r.problem(t); p.Type != "urn:millrace:problem:too-many-waiters" || r.header.Get("Retry-After") == "" {
		t.Errorf("problem %+v", p)
	}
	if got := decode[millrace.TaskResult](t, f.get("/v1/tasks/t1")); got.Status != millrace.StatusRunning {
		t.Errorf("without wait: %+v", got)
	}
	f.stop()
	<-answer
}

func TestStoreFailuresAreProblems(t *testing.T) {
	store := &memoryStore{err: errors.New("connection refused"), conv: millrace.Conversation{ID: "c"}}
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	for _, path := range []string{"/v1/tasks/t", "/v1/tasks/t?wait=30s", "/v1/conversations/c", "/v1/dead-letters"} {
		r := f.get(path)
		if p := r.problem(t); p.Type != "urn:millrace:problem:store-unavailable" || r.header.Get("Retry-After") == "" {
			t.Errorf("%s: problem %+v", path, p)
		}
	}
	store.err = nil
	for path, kind := range map[string]string{"/v1/tasks/t": "task-not-found", "/v1/conversations/d": "conversation-not-found"} {
		if p := f.get(path).problem(t); p.Type != ingest.ProblemPrefix+kind || p.Status != http.StatusNotFound {
			t.Errorf("%s: problem %+v", path, p)
		}
	}
}

func TestConversationIsReadPageByPage(t *testing.T) {
	store := &memoryStore{conv: millrace.Conversation{ID: "a/b", Version: 7, State: json.RawMessage(`{"n":7}`), Length: 10}}
	for i := range 10 {
		store.all = append(store.all, millrace.Message{Seq: int64(i + 1), Role: millrace.RoleUser, Content: fmt.Sprint(i + 1)})
	}
	store.conv.Tail = store.all[6:]
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	for _, limit := range []int{1, 3, 4, 10, 100} {
		var seqs []int64
		for after := int64(0); ; {
			page := decode[ingest.ConversationPage](t, f.get(fmt.Sprintf("/v1/conversations/a%%2Fb?after=%d&limit=%d", after, limit)))
			if page.ID != "a/b" || page.Version != 7 || page.Length != 10 || string(page.State) != `{"n":7}` || len(page.Messages) > limit {
				t.Fatalf("page %+v", page)
			}
			for _, m := range page.Messages {
				seqs = append(seqs, m.Seq)
			}
			if page.NextAfter == nil {
				break
			}
			after = *page.NextAfter
		}
		if fmt.Sprint(seqs) != "[1 2 3 4 5 6 7 8 9 10]" {
			t.Errorf("limit %d: %v", limit, seqs)
		}
	}
	r := f.get("/v1/conversations/a%2Fb?after=10")
	if page := decode[ingest.ConversationPage](t, r); page.Messages == nil || len(page.Messages) != 0 || page.NextAfter != nil {
		t.Errorf("beyond the end: %s", r.body)
	}
}

func TestDeadLettersAreListedPageByPage(t *testing.T) {
	store := &memoryStore{}
	for i := range 5 {
		store.dead = append(store.dead, millrace.DeadLetterEntry{ID: int64(2 * (i + 1)), TaskID: "t"})
	}
	f := start(t, func(c *ingest.Config) { c.Reader = store })
	var ids []int64
	for after := int64(0); ; {
		page := decode[ingest.DeadLetterPage](t, f.get(fmt.Sprintf("/v1/dead-letters?after=%d&limit=2", after)))
		for _, d := range page.DeadLetters {
			ids = append(ids, d.ID)
		}
		if page.NextAfter == nil {
			break
		}
		after = *page.NextAfter
	}
	if fmt.Sprint(ids) != "[2 4 6 8 10]" {
		t.Errorf("ids %v", ids)
	}
}
