package ingest

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ProblemPrefix precedes the name of every problem type to make it a URI.
const ProblemPrefix = "urn:millrace:problem:"

// problemKind is one type of problem: its name and what all its occurrences
// have in common.
type problemKind struct {
	name   string
	status int
	title  string
	hint   string
}

// The problem types. Names are part of the API: they never change their
// meaning.
var (
	emptyBody            = &problemKind{"empty-body", 400, "The request has no body", "Send the task as a JSON object."}
	malformedJSON        = &problemKind{"malformed-json", 400, "The body is not valid JSON", "Correct the JSON at the place that is named."}
	badEncoding          = &problemKind{"bad-encoding", 400, "The body cannot be decompressed", "Send what Content-Encoding promises, or no Content-Encoding."}
	incompleteBody       = &problemKind{"incomplete-body", 400, "The body ended before it was complete", "Send the whole body."}
	invalidParameter     = &problemKind{"invalid-parameter", 400, "A parameter is not valid", "Correct or leave out the parameter that is named."}
	invalidHeader        = &problemKind{"invalid-header", 400, "A header is not valid", "Correct or leave out the header that is named."}
	foreignHost          = &problemKind{"foreign-host", 403, "The Host is not a name of this machine", "Send requests to 127.0.0.1 or localhost. The operator can set MILLRACE_AUTH=trust-network to serve other names."}
	foreignOrigin        = &problemKind{"foreign-origin", 403, "The request comes from a web page of another server", "Send requests from a program, or from pages of this server. The operator can set MILLRACE_AUTH=trust-network to let others in."}
	routeNotFound        = &problemKind{"route-not-found", 404, "There is no such route", "See /docs for the routes there are."}
	taskNotFound         = &problemKind{"task-not-found", 404, "The task is not known", "Check the id. A task accepted moments ago may not be known yet: ask with ?wait=30s."}
	conversationNotFound = &problemKind{"conversation-not-found", 404, "The conversation is not known", "Check the id. A conversation exists once a turn on it has committed, until it is erased."}
	taskEnded            = &problemKind{"task-ended", 409, "The task has ended already", "Nothing is left to cancel; ask for the task to see how it ended."}
	methodNotAllowed     = &problemKind{"method-not-allowed", 405, "The route does not take this method", "Use a method that the Allow header lists."}
	bodyTimeout          = &problemKind{"body-timeout", 408, "The body took too long to arrive", "Send the body faster, or send less at once."}
	bodyTooLarge         = &problemKind{"body-too-large", 413, "The body is too large", "Send less at once, or put large data elsewhere and send a reference."}
	payloadTooLarge      = &problemKind{"payload-too-large", 413, "The payload is too large", "Put large data elsewhere and send a reference."}
	tooManyLines         = &problemKind{"too-many-lines", 413, "The batch has too many lines", "Send the rest in further batches."}
	unsupportedMediaType = &problemKind{"unsupported-media-type", 415, "The content type is not supported", "Send the Content-Type that is named."}
	unsupportedEncoding  = &problemKind{"unsupported-encoding", 415, "The content encoding is not supported", "Compress with gzip or zstd, or not at all."}
	tooDeep              = &problemKind{"too-deep", 422, "The JSON nests too deep", "Nest less, or send the data as a string."}
	unknownField         = &problemKind{"unknown-field", 422, "The task has a field that is not known", "Leave the field out; the payload and attributes are where data of your own goes."}
	missingField         = &problemKind{"missing-field", 422, "The task lacks a field", "Add the field that is named."}
	invalidField         = &problemKind{"invalid-field", 422, "A field of the task is not valid", "Correct the field that is named."}
	unknownPriority      = &problemKind{"unknown-priority", 422, "There is no such priority", "Use one of the priorities that are named, or leave it out."}
	invalidTask          = &problemKind{"invalid-task", 422, "The task has several errors", "Correct the fields that are named."}
	idempotencyKeyReused = &problemKind{"idempotency-key-reused", 422, "The Idempotency-Key was used for another task", "Send another task under a key of its own, and a repeat as it was."}
	tooManyCancels       = &problemKind{"too-many-cancels", 429, "Too many cancels of tasks that are not known", "Check the ids, and cancel again after the time in Retry-After."}
	overloaded           = &problemKind{"overloaded", 429, "The workers are too far behind", "Send the task again after the time in Retry-After."}
	classificationFailed = &problemKind{"classification-failed", 503, "The task could not be classified", "Send the task again later; tell the operator if it persists."}
	kafkaUnavailable     = &problemKind{"kafka-unavailable", 503, "Kafka did not acknowledge the task", "It may or may not have been stored. Send it again under the same Idempotency-Key: it is then done once."}
	storeNotConfigured   = &problemKind{"store-not-configured", 503, "No store is configured", "Tell the operator to set what is named."}
	storeUnavailable     = &problemKind{"store-unavailable", 503, "The store did not answer", "Ask again later."}
	scheduleUnavailable  = &problemKind{"schedule-unavailable", 503, "The task could not be held back until its run_at", "It may or may not have been stored. Send it again under the same Idempotency-Key: it is then done once."}
	tooManyWaiters       = &problemKind{"too-many-waiters", 503, "Too many requests are waiting for a task", "Ask without wait, or again later."}
	shuttingDown         = &problemKind{"shutting-down", 503, "This server is shutting down", "Send the task again: another server takes it."}
	internalError        = &problemKind{"internal-error", 500, "The server failed", "Send the request again; tell the operator if it persists."}
)

var problemKinds = []*problemKind{
	emptyBody, malformedJSON, badEncoding, incompleteBody, invalidParameter, invalidHeader,
	foreignHost, foreignOrigin, routeNotFound, taskNotFound, conversationNotFound, taskEnded, methodNotAllowed, bodyTimeout,
	bodyTooLarge, payloadTooLarge, tooManyLines, unsupportedMediaType, unsupportedEncoding,
	tooDeep, unknownField, missingField, invalidField, unknownPriority, invalidTask,
	idempotencyKeyReused, tooManyCancels, overloaded,
	classificationFailed, kafkaUnavailable, storeNotConfigured, storeUnavailable, scheduleUnavailable, tooManyWaiters,
	shuttingDown, internalError,
}

// ProblemType describes one type of problem.
type ProblemType struct {
	// Type is the URI in a problem's type member.
	Type string
	// Status is the HTTP status that it comes with.
	Status int
	// Title says what all occurrences have in common.
	Title string
	// Hint says what to do about it.
	Hint string
}

// ProblemTypes returns all problem types, by status.
func ProblemTypes() []ProblemType {
	types := make([]ProblemType, 0, len(problemKinds))
	for _, k := range problemKinds {
		types = append(types, ProblemType{Type: ProblemPrefix + k.name, Status: k.status, Title: k.title, Hint: k.hint})
	}
	return types
}

// Problem is an error as the API answers it: a problem document (RFC 9457).
type Problem struct {
	Type      string         `json:"type" doc:"Stable URI of the problem type" example:"urn:millrace:problem:unknown-priority"`
	Title     string         `json:"title" doc:"What all problems of this type have in common"`
	Status    int            `json:"status" doc:"The HTTP status code"`
	Detail    string         `json:"detail" doc:"What was wrong this time"`
	Hint      string         `json:"hint,omitempty" doc:"What to do about it"`
	RequestID string         `json:"request_id,omitempty" doc:"The X-Request-Id of the request"`
	Errors    []ProblemError `json:"errors,omitempty" doc:"Each thing that was wrong, and where"`

	kind       *problemKind
	retryAfter time.Duration
	headers    map[string]string
}

// ProblemError is one thing that was wrong, and where.
type ProblemError struct {
	Type      string `json:"type" doc:"Stable URI of the problem type"`
	Detail    string `json:"detail" doc:"What was wrong"`
	Pointer   string `json:"pointer,omitempty" doc:"Where in the body: a JSON pointer as a URI fragment (RFC 6901)" example:"#/priority"`
	Parameter string `json:"parameter,omitempty" doc:"Which path or query parameter"`
	Header    string `json:"header,omitempty" doc:"Which request header"`
	Offset    *int   `json:"offset,omitempty" doc:"Byte offset in the decompressed body, from 0"`
	Line      int    `json:"line,omitempty" doc:"Line in the body, from 1"`
	Column    int    `json:"column,omitempty" doc:"Character in the line, from 1"`
}

func (k *problemKind) uri() string { return ProblemPrefix + k.name }

func (k *problemKind) problem(format string, args ...any) *Problem {
	return &Problem{
		Type: k.uri(), Title: k.title, Status: k.status, Hint: k.hint,
		Detail: fmt.Sprintf(format, args...),
		kind:   k,
	}
}

// at returns a problem with the one place where it is wrong.
func (k *problemKind) at(where ProblemError) *Problem {
	p := k.problem("%s", where.describe())
	where.Type = k.uri()
	p.Errors = []ProblemError{where}
	return p
}

func (e *ProblemError) describe() string {
	switch {
	case e.Header != "":
		return e.Header + ": " + e.Detail
	case e.Parameter != "":
		return e.Parameter + ": " + e.Detail
	case e.Line > 0:
		return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Detail)
	case e.Pointer != "":
		return e.Pointer + ": " + e.Detail
	}
	return e.Detail
}

func (p *Problem) Error() string { return p.kind.name + ": " + p.Detail }

// retry makes the problem carry a Retry-After.
func (p *Problem) retry(after time.Duration) *Problem {
	p.retryAfter = after
	return p
}

// passing reports whether the same request may succeed later.
func (p *Problem) passing() bool { return p.Status == http.StatusTooManyRequests || p.Status >= 500 }

func retrySeconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	if p.retryAfter > 0 {
		h.Set("Retry-After", retrySeconds(p.retryAfter))
	}
	for k, v := range p.headers {
		h.Set(k, v)
	}
	w.WriteHeader(p.Status)
	// The status is sent: a client that went away is all that can fail here.
	_ = json.NewEncoder(w).Encode(p)
}

// pointer returns the JSON pointer of the path as a URI fragment.
func pointer(path ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var b strings.Builder
	for _, p := range path {
		b.WriteString("/" + escape.Replace(p))
	}
	u := url.URL{Fragment: b.String()}
	return "#" + u.EscapedFragment()
}
