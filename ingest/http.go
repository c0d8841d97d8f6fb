package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
)

const (
	headerRequestID      = "X-Request-Id"
	headerIdempotencyKey = "Idempotency-Key"
	maxRequestID         = 128
)

// endpoint answers one route. A problem it returns is written by the caller; it
// must not have written anything then.
type endpoint func(w http.ResponseWriter, r *http.Request) *Problem

// serve makes an endpoint a handler.
func (s *Server) serve(route string, e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := s.now()
		sw := &statusWriter{ResponseWriter: w}
		r = r.WithContext(context.WithValue(r.Context(), requestIDKey{}, requestID(r)))
		sw.Header().Set(headerRequestID, requestIDOf(r))
		var problem *Problem
		if s.cfg.LocalOnly {
			problem = checkLocal(r)
		}
		if problem == nil {
			problem = e(sw, r)
		}
		if problem != nil {
			s.metrics.refused.WithLabelValues(problem.kind.name).Inc()
			problem.RequestID = requestIDOf(r)
			if problem.kind != bodyTimeout && problem.kind != incompleteBody {
				s.discardBody(sw, r)
			}
			s.within(sw, func() { writeProblem(sw, problem) })
		}
		s.metrics.requestSeconds.WithLabelValues(route, strconv.Itoa(sw.status)).Observe(s.now().Sub(start).Seconds())
	}
}

// within bounds the time in which a client has to take an answer.
func (s *Server) within(w http.ResponseWriter, write func()) {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
	write()
	_ = control.Flush()
	// Another handler may answer the next request on this connection.
	_ = control.SetWriteDeadline(time.Time{})
}

func (s *Server) writeJSON(w http.ResponseWriter, status int, v any) *Problem {
	b, err := json.Marshal(v)
	if err != nil {
		s.failures.Error().Err(err).Msg("encode answer")
		return internalError.problem("the answer could not be encoded")
	}
	s.within(w, func() {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
		w.WriteHeader(status)
		_, _ = w.Write(append(b, '\n')) // the client is gone if this fails
	})
	return nil
}

type requestIDKey struct{}

// requestID returns the id that a request brings along, or a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get(headerRequestID)
	if id == "" || len(id) > maxRequestID {
		return uuid.NewString()
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return uuid.NewString()
		}
	}
	return id
}

func requestIDOf(r *http.Request) string {
	id, _ := r.Context().Value(requestIDKey{}).(string)
	return id
}

// statusWriter remembers the status that was sent.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets [http.ResponseController] reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// fallback answers what no route takes: the mux knows which of 404, 405 and a
// redirect it is, but says so in plain text.
func (s *Server) fallback(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		s.serve("none", func(w http.ResponseWriter, r *http.Request) *Problem {
			probe := &probeWriter{header: make(http.Header)}
			handler.ServeHTTP(probe, r)
			switch probe.status {
			case http.StatusMethodNotAllowed:
				p := methodNotAllowed.problem("%s takes %s, not %s", clip(r.URL.Path), probe.header.Get("Allow"), clip(r.Method))
				p.headers = map[string]string{"Allow": probe.header.Get("Allow")}
				return p
			case http.StatusNotFound:
				return routeNotFound.problem("%s %s: no such route", clip(r.Method), clip(r.URL.Path))
			}
			handler.ServeHTTP(w, r) // a redirect to the clean form of the path
			return nil
		})(w, r)
	})
}

// probeWriter takes the head of an answer and drops the rest.
type probeWriter struct {
	header http.Header
	status int
}

func (p *probeWriter) Header() http.Header         { return p.header }
func (p *probeWriter) Write(b []byte) (int, error) { return len(b), nil }
func (p *probeWriter) WriteHeader(status int)      { p.status = status }

// checkQuery refuses query parameters that the route does not know, so that a
// misspelt one is not passed over in silence.
func checkQuery(r *http.Request, known ...string) *Problem {
	for name, values := range r.URL.Query() {
		if !slices.Contains(known, name) {
			return invalidParameter.at(ProblemError{Parameter: clip(name), Detail: "not known to this route"})
		}
		if len(values) > 1 {
			return invalidParameter.at(ProblemError{Parameter: name, Detail: "given twice"})
		}
	}
	return nil
}

// intQuery returns a whole number from low to high, or def when there is none.
func intQuery(r *http.Request, name string, def, low, high int64) (int64, *Problem) {
	given := r.URL.Query().Get(name)
	if given == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(given, 10, 64)
	if err != nil || n < low || n > high {
		return 0, invalidParameter.at(ProblemError{Parameter: name, Detail: fmt.Sprintf("%q: want a whole number from %d to %d", clip(given), low, high)})
	}
	return n, nil
}

// waitQuery returns for how long to wait: a duration such as 30s, or seconds.
func waitQuery(r *http.Request) (time.Duration, *Problem) {
	given := r.URL.Query().Get("wait")
	if given == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(given)
	if err != nil {
		var seconds uint64
		if seconds, err = strconv.ParseUint(given, 10, 16); err == nil {
			d = time.Duration(seconds) * time.Second
		}
	}
	if err == nil && (d < 0 || d > MaxWait) {
		err = errors.New("out of range")
	}
	if err != nil {
		return 0, invalidParameter.at(ProblemError{Parameter: "wait", Detail: fmt.Sprintf("%q: want a duration up to %s, such as 30s", clip(given), MaxWait)})
	}
	return d, nil
}
