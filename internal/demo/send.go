package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"millrace"
)

// sentTask is an accepted task.
type sentTask struct {
	id       string
	text     string
	priority millrace.Priority
	// at is when the request that was accepted set out, which is what the task's
	// own time says to within a moment.
	at time.Time
}

// sentLog remembers what was accepted, per conversation in the order of the
// input.
type sentLog struct {
	mu            sync.Mutex
	conversations map[string][]sentTask
	refused       int
	firstRefusal  string
}

func newSentLog() *sentLog { return &sentLog{conversations: make(map[string][]sentTask)} }

func (l *sentLog) accept(conversation string, t sentTask) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conversations[conversation] = append(l.conversations[conversation], t)
}

func (l *sentLog) refuse(why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused++; l.refused == 1 {
		l.firstRefusal = why
	}
}

// sender posts turns to the HTTP API.
type sender struct {
	client  *http.Client
	url     string
	prefix  string
	senders int
	// giveUp is how long a turn may go unaccepted before the run ends; five times
	// as long when the API asks for patience.
	giveUp time.Duration
	log    *sentLog

	accepted  atomic.Int64
	throttled atomic.Int64
}

type queued struct {
	turn Turn
	// service is that of the conversation's first turn: a conversation that
	// changed its priority would lose its order.
	service string
	index   int
}

// send posts all turns of src and returns when each is accepted or refused. A
// conversation is one sender's, so that its next turn leaves after the one
// before is accepted.
func (s *sender) send(ctx context.Context, src source, broken func(error) error) error {
	group, ctx := errgroup.WithContext(ctx)
	queues := make([]chan queued, s.senders)
	for i := range queues {
		queue := make(chan queued, 16)
		queues[i] = queue
		group.Go(func() error {
			for q := range queue {
				if err := s.post(ctx, q); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer func() {
			for _, queue := range queues {
				close(queue)
			}
		}()
		return s.dispatch(ctx, src, queues, broken)
	})
	return group.Wait()
}

func (s *sender) dispatch(ctx context.Context, src source, queues []chan queued, broken func(error) error) error {
	type known struct {
		service string
		turns   int
	}
	conversations := make(map[string]*known)
	for {
		turn, err := src.next()
		var line *LineError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &line):
			if err := broken(err); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		k := conversations[turn.Conversation]
		if k == nil {
			k = &known{service: turn.Service}
			conversations[turn.Conversation] = k
		}
		h := fnv.New32a()
		_, _ = io.WriteString(h, turn.Conversation)
		select {
		case queues[h.Sum32()%uint32(len(queues))] <- queued{turn: turn, service: k.service, index: k.turns}: //nolint:gosec // a handful
			k.turns++
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type taskBody struct {
	Conversation string            `json:"conversation"`
	Type         string            `json:"type"`
	Payload      taskPayload       `json:"payload"`
	Attributes   map[string]string `json:"attributes,omitempty"`
}

type taskPayload struct {
	Text string `json:"text"`
}

type acceptance struct {
	TaskID   string            `json:"task_id"`
	Priority millrace.Priority `json:"priority"`
}

// post sends one turn until it is accepted or refused for good. Every try
// carries the same idempotency key, so a try whose answer got lost does no harm.
func (s *sender) post(ctx context.Context, q queued) error {
	conversation := s.prefix + q.turn.Conversation
	body := taskBody{Conversation: conversation, Type: q.turn.Type, Payload: taskPayload{Text: q.turn.Text}}
	if q.service != "" {
		body.Attributes = map[string]string{"service": q.service}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("send turn: %w", err)
	}
	sum := sha256.Sum256([]byte(conversation + "\x00" + strconv.Itoa(q.index)))
	key := hex.EncodeToString(sum[:16])
	first := time.Now()
	for try := 0; ; try++ {
		at := time.Now()
		got, wait, err := s.try(ctx, b, key)
		patience := s.giveUp
		if errors.Is(err, errThrottled) {
			patience *= 5
		}
		var refused *refusedError
		switch {
		case err == nil:
			s.log.accept(conversation, sentTask{id: got.TaskID, text: q.turn.Text, priority: got.Priority, at: at})
			s.accepted.Add(1)
			return nil
		case errors.As(err, &refused):
			s.log.refuse(fmt.Sprintf("conversation %s, turn %d: %v", q.turn.Conversation, q.index, err))
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Since(first) > patience:
			return fmt.Errorf("send turn %d of conversation %s, tried for %s: %w", q.index, q.turn.Conversation, patience, err)
		}
		if wait == 0 {
			wait = min(50*time.Millisecond<<min(try, 6), 2*time.Second)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// refusedError is an answer that no repetition changes.
type refusedError struct{ status, detail string }

func (e *refusedError) Error() string { return e.status + ": " + e.detail }

// errThrottled is an answer 429: the pipeline is behind.
var errThrottled = errors.New("429 Too Many Requests")

// maxAnswer bounds what is read of an answer.
const maxAnswer = 1 << 20

func (s *sender) try(ctx context.Context, body []byte, key string) (acceptance, time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/tasks", bytes.NewReader(body))
	if err != nil {
		return acceptance{}, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	resp, err := s.client.Do(req)
	if err != nil {
		return acceptance{}, 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end below
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return acceptance{}, 0, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode == http.StatusAccepted {
		var got acceptance
		if err := json.Unmarshal(b, &got); err != nil || got.TaskID == "" {
			return acceptance{}, 0, fmt.Errorf("status 202 without a task id: %q", clip(string(b)))
		}
		return got, 0, nil
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		s.throttled.Add(1)
	}
	detail := problemDetail(b)
	if resp.StatusCode == http.StatusTooManyRequests {
		return acceptance{}, retryAfter(resp.Header.Get("Retry-After")), fmt.Errorf("%w: %s", errThrottled, detail)
	}
	if resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusRequestTimeout {
		return acceptance{}, 0, &refusedError{status: resp.Status, detail: detail}
	}
	return acceptance{}, retryAfter(resp.Header.Get("Retry-After")), fmt.Errorf("%s: %s", resp.Status, detail)
}

// problemDetail takes the words out of a problem document (RFC 9457).
func problemDetail(b []byte) string {
	var p struct {
		Title, Detail string
	}
	if json.Unmarshal(b, &p) == nil && p.Title+p.Detail != "" {
		return clip(strings.TrimPrefix(p.Title+": "+p.Detail, ": "))
	}
	return clip(string(b))
}

func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// retryAfter reads whole seconds, the form that the API sends; 0 when there are
// none. A minute is the longest that a demo waits on one answer.
func retryAfter(header string) time.Duration {
	n, err := strconv.Atoi(strings.TrimSpace(header))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, time.Minute)
}
