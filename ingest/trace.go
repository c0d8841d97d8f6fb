package ingest

import (
	"net/http"
	"strings"

	"millrace"
)

// maxTraceState is what the recommendation bids carriers propagate at least.
const maxTraceState = 512

// continueTrace makes the task part of the sender's trace (W3C Trace Context).
// As the recommendation has it, a header that is not valid is as good as none.
func continueTrace(task *millrace.Task, h http.Header) {
	parent := h.Get("Traceparent")
	if !validTraceParent(parent) {
		return
	}
	task.TraceParent = parent
	state := strings.Join(h.Values("Tracestate"), ",")
	if len(state) <= maxTraceState && strings.IndexFunc(state, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		task.TraceState = state
	}
}

// validTraceParent reports whether s has the form 00-TRACE-PARENT-FLAGS. A later
// version may go on after a dash.
func validTraceParent(s string) bool {
	const size = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(s) < size || len(s) > 128 || s[:2] == "ff" || (s[:2] == "00" && len(s) != size) || (len(s) > size && s[size] != '-') {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case i == 2 || i == 35 || i == 52:
			if c != '-' {
				return false
			}
		case i >= size:
			if c <= ' ' || c > '~' {
				return false
			}
		case (c < '0' || c > '9') && (c < 'a' || c > 'f'):
			return false
		}
	}
	return strings.Trim(s[3:35], "0") != "" && strings.Trim(s[36:52], "0") != ""
}
