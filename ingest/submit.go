package ingest

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"millrace"
)

// Accepted is the answer to a task that has been taken in.
type Accepted struct {
	TaskID         string            `json:"task_id" doc:"The task's id"`
	ConversationID string            `json:"conversation_id,omitempty" doc:"The task's conversation"`
	Priority       millrace.Priority `json:"priority" doc:"The priority that the task was given"`
	Status         millrace.Status   `json:"status" enum:"queued" doc:"Always queued"`
	RunAt          time.Time         `json:"run_at,omitzero" doc:"Until when the task is held back, if it is. A repeat leaves a task the time that it has"`
}

func accepted(t *taken) Accepted {
	return Accepted{
		TaskID: t.task.ID, ConversationID: t.task.Conversation, Priority: t.task.Priority, Status: millrace.StatusQueued, RunAt: t.runAt.UTC(),
	}
}

func taskLocation(id string) string { return "/v1/tasks/" + url.PathEscape(id) }

// taken is a task that has been taken in and is neither in Kafka nor in the store
// yet.
type taken struct {
	task millrace.Task
	// runAt is when to release the task. Zero: at once.
	runAt time.Time
	// compare is the fingerprint that tells the task from others under its key.
	// Empty: there is nothing to compare.
	compare string
}

// takeIn makes a task of a body: all that happens before it is produced.
func (s *Server) takeIn(r *http.Request, body []byte, line int) (*taken, *Problem) {
	now := s.now()
	decoded, problem := s.decoder.decode(body, now)
	if problem != nil {
		return nil, problem
	}
	t := &taken{task: decoded.Task, runAt: decoded.runAt}
	task := &t.task
	if s.claims.keyed(r) {
		t.compare = fingerprint(task, task.Priority)
	}
	task.Source, task.Time = s.cfg.Source, now.UTC()
	continueTrace(task, r.Header)
	var err error
	if task.ID, err = taskID(task.Tenant, r.Header.Get(headerIdempotencyKey), line); err != nil {
		s.failures.Error().Err(err).Msg("take task in")
		return nil, internalError.problem("no task id could be made")
	}
	if problem := s.classify(r.Context(), task); problem != nil {
		return nil, problem
	}
	return t, nil
}

func (s *Server) stopped() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

func stoppedProblem() *Problem {
	return shuttingDown.problem("the server takes no new tasks").retry(time.Second)
}

func (s *Server) submit(w http.ResponseWriter, r *http.Request) *Problem {
	if !s.gate.enter() {
		return stoppedProblem()
	}
	defer s.gate.leave()
	if problem := checkQuery(r); problem != nil {
		return problem
	}
	if problem := checkMediaType(r, taskMediaTypes); problem != nil {
		return problem
	}
	if problem := checkIdempotencyKey(r.Header); problem != nil {
		return problem
	}
	body, problem := s.readBody(w, r, s.cfg.bodyLimit())
	if problem != nil {
		return problem
	}
	t, problem := s.takeIn(r, body, 0)
	if problem != nil {
		return problem
	}
	if problem := s.admit(t); problem != nil {
		return problem
	}
	if t.compare != "" {
		if problem := s.claims.check(r.Context(), map[string]string{t.task.ID: t.compare})[t.task.ID]; problem != nil {
			return problem
		}
	}
	if t.runAt.IsZero() {
		problem = s.send(r.Context(), &t.task)
	} else {
		problem = s.schedule(r.Context(), []millrace.ScheduledTask{{Task: t.task, RunAt: t.runAt}})
	}
	if problem != nil {
		return problem
	}
	s.accept(t)
	w.Header().Set("Location", taskLocation(t.task.ID))
	return s.writeJSON(w, http.StatusAccepted, accepted(t))
}

// send produces a task and waits for its acknowledgement.
func (s *Server) send(ctx context.Context, task *millrace.Task) *Problem {
	acked := make(chan error, 1)
	if err := s.produce(ctx, task, func(err error) { acked <- err }); err != nil {
		return s.encodeProblem(task, err)
	}
	ctx, cancel := s.ackContext(ctx)
	defer cancel()
	if err := await(ctx, acked); err != nil {
		return s.produceProblem(task, err)
	}
	return nil
}

// accept counts a task that is stored, and announces it. Of one that is held back
// the store itself knows.
func (s *Server) accept(t *taken) {
	if !t.runAt.IsZero() {
		s.metrics.scheduled.WithLabelValues(string(t.task.Priority)).Inc()
		return
	}
	s.metrics.accepted.WithLabelValues(string(t.task.Priority)).Inc()
	s.announcer.add(t.task)
}

// encodeProblem is for a task that passed every check and still is none.
func (s *Server) encodeProblem(task *millrace.Task, err error) *Problem {
	s.failures.Error().Err(err).Str("task", task.ID).Msg("encode task")
	return internalError.problem("the task could not be encoded")
}
