package ingest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"millrace"
)

// Canceller ends tasks before they are done.
type Canceller interface {
	// Cancel makes the end of a task durable, unless it has ended, and returns what
	// is known of it then. A task that nothing is known of is [millrace.ErrNotFound],
	// unless unseen says to cancel whatever comes under the id.
	Cancel(ctx context.Context, id string, unseen bool) (millrace.TaskResult, error)
}

const cancelSuffix = ":cancel"

// Cancels of tasks that nothing is known of leave a row each, for ever. They are
// rare: of tasks that were accepted a moment ago, or not through this API. What
// one process takes of them is bounded.
const (
	unseenBurst  = 200
	unseenSecond = 20
)

// cancelBudget is a token bucket.
type cancelBudget struct {
	now func() time.Time

	mu   sync.Mutex
	left float64
	at   time.Time
}

func newCancelBudget(now func() time.Time) *cancelBudget {
	return &cancelBudget{now: now, left: unseenBurst, at: now()}
}

func (b *cancelBudget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.left = min(unseenBurst, b.left+now.Sub(b.at).Seconds()*unseenSecond)
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// postTask takes what is asked of one task. The mux has no pattern for a suffix.
func (s *Server) postTask(w http.ResponseWriter, r *http.Request) *Problem {
	call := r.PathValue("call")
	id, isCancel := strings.CutSuffix(call, cancelSuffix)
	if !isCancel {
		p := methodNotAllowed.problem("%s takes GET, not POST", clip(r.URL.Path))
		p.headers = map[string]string{"Allow": "GET, HEAD"}
		return p
	}
	if problem := checkQuery(r); problem != nil {
		return problem
	}
	r.SetPathValue("id", id)
	if id, problem := checkPathID(r, millrace.MaxIDBytes); problem != nil {
		return problem
	} else if id == "" {
		return invalidParameter.at(ProblemError{Parameter: "id", Detail: "empty"})
	}
	return s.cancelTask(w, r, id)
}

func (s *Server) cancelTask(w http.ResponseWriter, r *http.Request, id string) *Problem {
	if s.cfg.Canceller == nil {
		return storeNotConfigured.problem(readerMissing, s.cfg.ReaderSetting)
	}
	status := http.StatusOK
	result, err := s.cancel(r.Context(), id, false)
	if errors.Is(err, millrace.ErrNotFound) {
		if !s.unseen.take() {
			return tooManyCancels.problem("nothing is known of task %s, and too many such tasks have been cancelled", clip(id)).retry(time.Second)
		}
		status = http.StatusAccepted
		result, err = s.cancel(r.Context(), id, true)
	}
	switch {
	case err != nil:
		if r.Context().Err() == nil {
			s.failures.Warn().Err(err).Str("task", id).Msg("cancel task")
		}
		return storeUnavailable.problem("task %s could not be cancelled; it may have been", clip(id)).retry(time.Second)
	case result.Status != millrace.StatusCancelled:
		return taskEnded.problem("task %s is %s", clip(id), result.Status)
	}
	return s.writeJSON(w, status, result)
}

func (s *Server) cancel(ctx context.Context, id string, unseen bool) (millrace.TaskResult, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	return s.cfg.Canceller.Cancel(ctx, id, unseen)
}
