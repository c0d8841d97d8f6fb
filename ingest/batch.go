package ingest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"millrace"
)

// BatchResult is what became of one line of a batch.
type BatchResult struct {
	Line           int               `json:"line" doc:"The line, from 1; blank ones count"`
	Status         int               `json:"status" doc:"202, or the status that the task would have got by itself"`
	TaskID         string            `json:"task_id,omitempty" doc:"The task's id, when it was accepted"`
	ConversationID string            `json:"conversation_id,omitempty" doc:"The task's conversation"`
	Priority       millrace.Priority `json:"priority,omitempty" doc:"The priority that the task was given"`
	RunAt          time.Time         `json:"run_at,omitzero" doc:"Until when the task is held back, if it is. A repeat leaves a task the time that it has"`
	Error          *Problem          `json:"error,omitempty" doc:"Why the line was not accepted"`
}

// batchLine is a line on its way: refused already, or waiting for its
// acknowledgement.
type batchLine struct {
	number  int
	taken   *taken // nil if the line is no task
	acked   chan error
	problem *Problem
}

// batch is one request on its way.
type batch struct {
	s *Server
	r *http.Request
	// held are the conversations of which a line was refused for a passing
	// reason. Later lines of theirs are refused as well, so that sending the
	// refused lines again keeps the order.
	held map[string]*Problem
	// broken is set once Kafka has failed a line. From then on nothing is
	// produced any more: a later line of the conversation might get through and
	// so ahead of it, and with a full buffer each line would wait as long.
	broken atomic.Bool
	lines  []batchLine
	// sent is how many of the lines have been handed on.
	sent int
	// together is how many lines are handed on at once: more than one only saves
	// round trips where keys are compared.
	together int
	// scheduled are the lines that wait to be stored together, by their index, and
	// scheduledBytes what their payloads hold.
	scheduled      []int
	scheduledBytes int
}

// submitBatch takes tasks in line by line. It produces while it reads and
// answers once it has read everything: a client that sends all before it reads
// would otherwise stand against a server that does not read on.
func (s *Server) submitBatch(w http.ResponseWriter, r *http.Request) *Problem {
	if !s.gate.enter() {
		return stoppedProblem()
	}
	defer s.gate.leave()
	if problem := checkQuery(r); problem != nil {
		return problem
	}
	if problem := checkMediaType(r, batchMediaTypes); problem != nil {
		return problem
	}
	if problem := checkIdempotencyKey(r.Header); problem != nil {
		return problem
	}
	body, problem := s.openBody(w, r, s.cfg.MaxBatchBytes)
	if problem != nil {
		return problem
	}
	b := &batch{s: s, r: r, held: make(map[string]*Problem), together: 1}
	if s.claims.keyed(r) {
		b.together = claimLines
	}
	problem = b.read(body)
	b.send()
	b.schedule()
	body.close()
	if len(b.lines) == 0 {
		if problem == nil {
			problem = emptyBody.problem("the body has no lines; want one task a line")
		}
		return problem
	}
	if problem != nil {
		b.lines = append(b.lines, batchLine{number: b.lines[len(b.lines)-1].number + 1, problem: problem})
		s.discardBody(w, r)
	}
	return s.answerBatch(w, r, b.results())
}

// read takes in all lines. The problem is one of the body as a whole: it has
// ended the reading.
func (b *batch) read(body io.Reader) *Problem {
	lines := &lineReader{
		in:      bufio.NewReaderSize(body, 64<<10),
		maxLine: int(b.s.cfg.bodyLimit()), maxTotal: b.s.cfg.MaxBatchBytes,
	}
	for number := 1; ; number++ {
		line, err := lines.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errBodyTooLong):
			return bodyTooLarge.problem("the batch has more than %d bytes", b.s.cfg.MaxBatchBytes)
		case err != nil && !errors.Is(err, errLineTooLong):
			return b.s.bodyProblem(b.r, err, b.s.cfg.MaxBatchBytes)
		}
		if len(bytes.TrimSpace(line)) == 0 && err == nil {
			continue
		}
		if len(b.lines) == b.s.cfg.MaxBatchLines {
			return tooManyLines.problem("the batch has more than %d lines with a task", b.s.cfg.MaxBatchLines)
		}
		l := batchLine{number: number}
		if err != nil {
			l.problem = bodyTooLarge.problem("the line has more than %d bytes", lines.maxLine)
		} else {
			l.taken, l.problem = b.s.takeIn(b.r, line, number)
		}
		b.lines = append(b.lines, l)
		if len(b.lines)-b.sent >= b.together {
			b.send()
		}
	}
}

// send hands the lines on that have been read since the last time: those that
// are admitted and that their keys do not speak against, in their order.
func (b *batch) send() {
	first, lines := b.sent, b.lines[b.sent:]
	b.sent = len(b.lines)
	var compare map[string]string
	for i := range lines {
		if b.admit(&lines[i]); lines[i].problem == nil && lines[i].taken.compare != "" {
			if compare == nil {
				compare = make(map[string]string, len(lines))
			}
			compare[lines[i].taken.task.ID] = lines[i].taken.compare
		}
	}
	problems := b.s.claims.check(b.r.Context(), compare)
	for i := range lines {
		l := &lines[i]
		if l.problem == nil {
			l.problem = problems[l.taken.task.ID]
		}
		if l.problem == nil && !l.taken.runAt.IsZero() {
			b.hold(first + i)
			continue
		}
		if l.problem == nil && b.broken.Load() {
			l.problem = notSent()
		}
		if l.problem == nil {
			b.produce(l)
		}
	}
}

// What is stored in one transaction of the tasks that are held back.
const (
	scheduleLines = 500
	scheduleBytes = 8 << 20
)

// hold adds a line to those that are stored together. A line that is sent at once
// may overtake it: its time is earlier.
func (b *batch) hold(i int) {
	b.scheduled = append(b.scheduled, i)
	b.scheduledBytes += len(b.lines[i].taken.task.Payload)
	if len(b.scheduled) == scheduleLines || b.scheduledBytes >= scheduleBytes {
		b.schedule()
	}
}

// schedule stores the lines that are held back. If it fails, it fails for all of
// them and for the later ones of their conversations.
func (b *batch) schedule() {
	if len(b.scheduled) == 0 {
		return
	}
	tasks := make([]millrace.ScheduledTask, len(b.scheduled))
	for n, i := range b.scheduled {
		tasks[n] = millrace.ScheduledTask{Task: b.lines[i].taken.task, RunAt: b.lines[i].taken.runAt}
	}
	if problem := b.s.schedule(b.r.Context(), tasks); problem != nil {
		for _, i := range b.scheduled {
			b.lines[i].problem = problem
			b.holdBack(&b.lines[i])
		}
	}
	b.scheduled, b.scheduledBytes = b.scheduled[:0], 0
}

func notSent() *Problem {
	return kafkaUnavailable.problem("not sent, as an earlier line was not acknowledged").retry(2 * time.Second)
}

// admit refuses a line for what is going on around it.
func (b *batch) admit(l *batchLine) {
	if l.problem != nil {
		return
	}
	key := l.taken.task.Conversation
	switch {
	case b.broken.Load() && l.taken.runAt.IsZero():
		l.problem = notSent()
	case b.s.stopped():
		l.problem = stoppedProblem()
	case key != "" && b.held[key] != nil:
		l.problem = b.held[key]
	default:
		l.problem = b.s.admit(l.taken)
	}
	b.holdBack(l)
}

// holdBack keeps the later lines of a conversation behind one that was refused for
// a passing reason.
func (b *batch) holdBack(l *batchLine) {
	if key := l.taken.task.Conversation; l.problem != nil && key != "" && l.problem.passing() {
		b.held[key] = l.problem
	}
}

func (b *batch) produce(l *batchLine) {
	l.acked = make(chan error, 1)
	acked := l.acked
	err := b.s.produce(b.r.Context(), &l.taken.task, func(err error) {
		if err != nil && !tooLargeForKafka(err) {
			b.broken.Store(true)
		}
		acked <- err
	})
	if err != nil {
		l.problem = b.s.encodeProblem(&l.taken.task, err)
	}
}

// results waits for the acknowledgements, in the order of the lines.
func (b *batch) results() []BatchResult {
	ctx, cancel := b.s.ackContext(b.r.Context())
	defer cancel()
	results := make([]BatchResult, len(b.lines))
	for i := range b.lines {
		l := &b.lines[i]
		if l.problem == nil && l.acked != nil {
			if err := await(ctx, l.acked); err != nil {
				l.problem = b.s.produceProblem(&l.taken.task, err)
			}
		}
		results[i] = b.result(l)
	}
	return results
}

func (b *batch) result(l *batchLine) BatchResult {
	if l.problem != nil {
		b.s.metrics.refused.WithLabelValues(l.problem.kind.name).Inc()
		return BatchResult{Line: l.number, Status: l.problem.Status, Error: l.problem}
	}
	b.s.accept(l.taken)
	task := &l.taken.task
	return BatchResult{
		Line: l.number, Status: http.StatusAccepted,
		TaskID: task.ID, ConversationID: task.Conversation, Priority: task.Priority, RunAt: l.taken.runAt.UTC(),
	}
}

// answerBatch writes one result a line, or a JSON array to a client that
// prefers one. The status is 202 when every line was accepted, otherwise 200,
// also when none was: the lines then have to be looked at, and their statuses differ.
func (s *Server) answerBatch(w http.ResponseWriter, r *http.Request, results []BatchResult) *Problem {
	status := http.StatusAccepted
	var longest time.Duration
	for i := range results {
		if e := results[i].Error; e != nil {
			status = http.StatusOK
			longest = max(longest, e.retryAfter)
		}
	}
	if longest > 0 {
		w.Header().Set("Retry-After", retrySeconds(longest))
	}
	if wantsArray(r) {
		return s.writeJSON(w, status, results)
	}
	s.within(w, func() {
		w.Header().Set("Content-Type", mediaNDJSON)
		w.WriteHeader(status)
		out := bufio.NewWriterSize(w, 64<<10)
		enc := json.NewEncoder(out)
		for i := range results {
			if enc.Encode(&results[i]) != nil {
				return // the client went away
			}
		}
		_ = out.Flush()
	})
	return nil
}

// wantsArray reports whether a client names JSON, and NDJSON not.
func wantsArray(r *http.Request) bool {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	return strings.Contains(accept, millrace.JSON) && !strings.Contains(accept, "ndjson") && !strings.Contains(accept, "jsonl")
}
