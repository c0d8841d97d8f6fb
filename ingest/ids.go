package ingest

import (
	"fmt"

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

// checkIdempotencyKey returns what is wrong with a key.
func checkIdempotencyKey(key string) *Problem {
	if len(key) > maxIdempotencyKey {
		return invalidHeader.at(ProblemError{Header: "Idempotency-Key", Detail: fmt.Sprintf("%d characters, at most %d", len(key), maxIdempotencyKey)})
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return invalidHeader.at(ProblemError{Header: "Idempotency-Key", Detail: "want printable ASCII, such as a UUID"})
		}
	}
	return nil
}
