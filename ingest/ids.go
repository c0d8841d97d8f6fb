package ingest

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

// idempotencyNamespace is the UUID namespace of ids that follow from an
// Idempotency-Key. It is part of the format: another one would make a repeated
// task a new one.
var idempotencyNamespace = uuid.MustParse("7c9b6d0e-5a52-4a2f-9d55-0f3b1f0c8e61")

const maxIdempotencyKey = 255

// taskID returns the id of a task: by time (UUID version 7, RFC 9562) or, with
// a key, from tenant and key alone (version 5), so that a repeat is the same
// task. Line tells the tasks of a batch apart; 0 is a task by itself.
func taskID(tenant, key string, line int) (string, error) {
	if key == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return "", fmt.Errorf("make task id: %w", err)
		}
		return id.String(), nil
	}
	// Neither tenant nor key can hold a control character, so a NUL between them
	// keeps the pairs apart.
	name := tenant + "\x00" + key
	if line > 0 {
		name += "\x00" + itoa(line)
	}
	return uuid.NewSHA1(idempotencyNamespace, []byte(name)).String(), nil
}

// checkIdempotencyKey returns what is wrong with a request's key. One that is
// sent and empty is an error: its sender relies on it.
func checkIdempotencyKey(h http.Header) *Problem {
	values := h.Values(headerIdempotencyKey)
	if len(values) == 0 {
		return nil
	}
	detail := ""
	switch key := values[0]; {
	case len(values) > 1:
		detail = "given twice"
	case key == "":
		detail = "empty; want a key of your own, such as a UUID"
	case len(key) > maxIdempotencyKey:
		detail = fmt.Sprintf("%d characters, at most %d", len(key), maxIdempotencyKey)
	case strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) >= 0:
		detail = "want printable ASCII, such as a UUID"
	default:
		return nil
	}
	return invalidHeader.at(ProblemError{Header: headerIdempotencyKey, Detail: detail})
}
