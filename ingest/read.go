package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"millrace"
)

// Reader answers questions from what has been committed. It returns
// [millrace.ErrNotFound] for what it does not know; any other error is one of
// the store.
type Reader interface {
	// Task returns what is known of a task.
	Task(ctx context.Context, id string) (millrace.TaskResult, error)
	// Conversation returns a conversation with as much of its tail as is at hand.
	Conversation(ctx context.Context, id string) (millrace.Conversation, error)
	// History returns the last n messages of a conversation up to and including
	// the sequence number last, oldest first.
	History(ctx context.Context, conversation string, last int64, n int) ([]millrace.Message, error)
	// DeadLetters returns up to limit dead letters with ids above after, by id.
	DeadLetters(ctx context.Context, after int64, limit int) ([]millrace.DeadLetterEntry, error)
}

const (
	firstPoll     = 25 * time.Millisecond
	slowestPoll   = 500 * time.Millisecond
	defaultPage   = 100
	maxPage       = 1_000
	maxSequence   = 1<<53 - 1 // what every JSON reader holds exactly
	readerMissing = "no store is configured; set %s"
)

// ConversationPage is the answer to a question for a conversation.
type ConversationPage struct {
	ID        string             `json:"id" doc:"The conversation's id"`
	Version   int64              `json:"version" doc:"Counts the turns that changed the conversation"`
	Length    int64              `json:"length" doc:"Messages in the whole history"`
	Erased    int64              `json:"erased,omitempty" doc:"Messages that came before and were erased: the first of the history has the number that follows"`
	State     json.RawMessage    `json:"state" doc:"The handler's own state, null when no turn has set one"`
	Messages  []millrace.Message `json:"messages" doc:"One page of the history, oldest first"`
	NextAfter *int64             `json:"next_after,omitempty" doc:"The after of the next page; absent on the last one"`
}

// DeadLetterPage is the answer to a question for dead letters.
type DeadLetterPage struct {
	DeadLetters []millrace.DeadLetterEntry `json:"dead_letters" doc:"One page, oldest first"`
	NextAfter   *int64                     `json:"next_after,omitempty" doc:"The after of the next page; absent on the last one"`
}

// ask puts one question to the reader.
func ask[T any](ctx context.Context, s *Server, what string, notFound *problemKind, question func(context.Context, Reader) (T, error)) (T, *Problem) {
	var none T
	if s.cfg.Reader == nil {
		return none, storeNotConfigured.problem(readerMissing, s.cfg.ReaderSetting)
	}
	asked, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	answer, err := question(asked, s.cfg.Reader)
	switch {
	case err == nil:
		return answer, nil
	case errors.Is(err, millrace.ErrNotFound) && notFound != nil:
		return none, notFound.problem("%s is not known", what)
	case ctx.Err() == nil:
		s.failures.Warn().Err(err).Str("what", what).Msg("read from store")
	}
	return none, storeUnavailable.problem("%s could not be read", what).retry(time.Second)
}

func checkPathID(r *http.Request, maxBytes int) (string, *Problem) {
	id := r.PathValue("id")
	if err := millrace.ValidateConversation(id); err != nil || len(id) > maxBytes {
		return "", invalidParameter.at(ProblemError{Parameter: "id", Detail: fmt.Sprintf("want at most %d bytes of UTF-8 without control characters", maxBytes)})
	}
	return id, nil
}

func (s *Server) getTask(w http.ResponseWriter, r *http.Request) *Problem {
	id, problem := checkPathID(r, millrace.MaxIDBytes)
	if problem != nil {
		return problem
	}
	if problem := checkQuery(r, "wait"); problem != nil {
		return problem
	}
	wait, problem := waitQuery(r)
	if problem != nil {
		return problem
	}
	result, problem := s.awaitTask(r.Context(), id, wait)
	if problem != nil {
		return problem
	}
	return s.writeJSON(w, http.StatusOK, result)
}

// awaitTask returns what is known of a task: once it is final, or when the time
// is over, the client gone or the server stopping. A task that is not known yet
// is waited for as well: it may have been accepted a moment ago.
func (s *Server) awaitTask(ctx context.Context, id string, wait time.Duration) (millrace.TaskResult, *Problem) {
	read := func() (millrace.TaskResult, *Problem) {
		return ask(ctx, s, "task "+clip(id), taskNotFound, func(ctx context.Context, r Reader) (millrace.TaskResult, error) {
			return r.Task(ctx, id)
		})
	}
	result, problem := read()
	if settled(result, problem) || wait <= 0 {
		return result, problem
	}
	select {
	case s.waiters <- struct{}{}:
		defer func() { <-s.waiters }()
	default:
		return result, tooManyWaiters.problem("%d requests wait already", cap(s.waiters)).retry(time.Second)
	}
	s.metrics.waiting.Inc()
	defer s.metrics.waiting.Dec()

	over := time.NewTimer(wait)
	defer over.Stop()
	poll := time.NewTimer(firstPoll)
	defer poll.Stop()
	for interval := firstPoll; ; {
		select {
		case <-ctx.Done():
			return result, problem
		case <-s.stopping:
			return result, problem
		case <-over.C:
			return read()
		case <-poll.C:
		}
		if result, problem = read(); settled(result, problem) {
			return result, problem
		}
		interval = min(interval*3/2, slowestPoll)
		poll.Reset(interval)
	}
}

// settled reports whether there is nothing to wait for: a final status, or a
// problem other than that the task is not known.
func settled(result millrace.TaskResult, problem *Problem) bool {
	if problem != nil {
		return problem.kind != taskNotFound
	}
	return result.Status.Final()
}

func (s *Server) getConversation(w http.ResponseWriter, r *http.Request) *Problem {
	id, problem := checkPathID(r, millrace.MaxConversationBytes)
	if problem != nil {
		return problem
	}
	after, limit, problem := page(r)
	if problem != nil {
		return problem
	}
	what := "conversation " + clip(id)
	conv, problem := ask(r.Context(), s, what, conversationNotFound, func(ctx context.Context, r Reader) (millrace.Conversation, error) {
		return r.Conversation(ctx, id)
	})
	if problem != nil {
		return problem
	}
	after = max(after, conv.Erased)
	last := min(after+limit, conv.Last())
	answer := ConversationPage{ID: id, Version: conv.Version, Length: conv.Length, Erased: conv.Erased, State: conv.State, Messages: []millrace.Message{}}
	if n := last - after; n > 0 {
		if answer.Messages, problem = s.messages(r.Context(), what, &conv, id, last, int(n)); problem != nil {
			return problem
		}
		if last < conv.Last() {
			answer.NextAfter = &last
		}
	}
	return s.writeJSON(w, http.StatusOK, answer)
}

// messages returns n messages up to last: from the conversation's tail when it
// holds them all, otherwise from the history.
func (s *Server) messages(ctx context.Context, what string, conv *millrace.Conversation, id string, last int64, n int) ([]millrace.Message, *Problem) {
	before := conv.Last() - int64(len(conv.Tail)) // what the tail lacks
	if first := last - int64(n); first >= before {
		return conv.Tail[first-before : last-before], nil
	}
	return ask(ctx, s, what, nil, func(ctx context.Context, r Reader) ([]millrace.Message, error) {
		m, err := r.History(ctx, id, last, n)
		if m == nil {
			m = []millrace.Message{}
		}
		return m, err
	})
}

func (s *Server) getDeadLetters(w http.ResponseWriter, r *http.Request) *Problem {
	after, limit, problem := page(r)
	if problem != nil {
		return problem
	}
	entries, problem := ask(r.Context(), s, "the list of dead letters", nil, func(ctx context.Context, r Reader) ([]millrace.DeadLetterEntry, error) {
		// One more than the page tells whether there is a next one.
		return r.DeadLetters(ctx, after, int(limit)+1)
	})
	if problem != nil {
		return problem
	}
	answer := DeadLetterPage{DeadLetters: entries}
	if int64(len(entries)) > limit {
		answer.DeadLetters = entries[:limit]
		answer.NextAfter = &entries[limit-1].ID
	}
	if answer.DeadLetters == nil {
		answer.DeadLetters = []millrace.DeadLetterEntry{}
	}
	return s.writeJSON(w, http.StatusOK, answer)
}

// page returns the paging of a list: what to begin after, and how many.
func page(r *http.Request) (after, limit int64, problem *Problem) {
	if problem = checkQuery(r, "after", "limit"); problem != nil {
		return 0, 0, problem
	}
	if after, problem = intQuery(r, "after", 0, 0, maxSequence); problem != nil {
		return 0, 0, problem
	}
	limit, problem = intQuery(r, "limit", defaultPage, 1, maxPage)
	return after, limit, problem
}
