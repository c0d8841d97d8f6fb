package ingest

import (
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
}

func accepted(t *millrace.Task) Accepted {
	return Accepted{TaskID: t.ID, ConversationID: t.Conversation, Priority: t.Priority, Status: millrace.StatusQueued}
}

func taskLocation(id string) string { return "/v1/tasks/" + url.PathEscape(id) }

// takeIn makes a task of a body: all that happens before it is produced.
// The fingerprint is what to compare the task by; empty means that there is
// nothing to compare.
func (s *Server) takeIn(r *http.Request, body []byte, line int) (_ *millrace.Task, compare string, _ *Problem) {
	now := s.now()
	task, problem := s.decoder.decode(body, now)
	if problem != nil {
		return nil, "", problem
	}
	if s.claims.keyed(r) {
		compare = fingerprint(&task, task.Priority)
	}
	task.Source, task.Time = s.cfg.Source, now.UTC()
	continueTrace(&task, r.Header)
	var err error
	if task.ID, err = taskID(task.Tenant, r.Header.Get(headerIdempotencyKey), line); err != nil {
		s.failures.Error().Err(err).Msg("take task in")
		return nil, "", internalError.problem("no task id could be made")
	}
	if problem := s.classify(r.Context(), &task); problem != nil {
		return nil, "", problem
	}
	return &task, compare, nil
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
	task, compare, problem := s.takeIn(r, body, 0)
	if problem != nil {
		return problem
	}
	if problem := s.admission.admit(task.Priority); problem != nil {
		return problem
	}
	if compare != "" {
		if problem := s.claims.check(r.Context(), map[string]string{task.ID: compare})[task.ID]; problem != nil {
			return problem
		}
	}
	acked := make(chan error, 1)
	if err := s.produce(r.Context(), task, func(err error) { acked <- err }); err != nil {
		return s.encodeProblem(task, err)
	}
	ctx, cancel := s.ackContext(r.Context())
	defer cancel()
	if err := await(ctx, acked); err != nil {
		return s.produceProblem(task, err)
	}
	s.metrics.accepted.WithLabelValues(string(task.Priority)).Inc()
	s.announcer.add(*task)
	w.Header().Set("Location", taskLocation(task.ID))
	return s.writeJSON(w, http.StatusAccepted, accepted(task))
}

// encodeProblem is for a task that passed every check and still is none.
func (s *Server) encodeProblem(task *millrace.Task, err error) *Problem {
	s.failures.Error().Err(err).Str("task", task.ID).Msg("encode task")
	return internalError.problem("the task could not be encoded")
}
