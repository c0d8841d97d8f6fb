package ingest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"millrace"
)

// Fingerprints remember what an Idempotency-Key was used for, so that another
// task under the same key is refused instead of being taken for a repeat.
type Fingerprints interface {
	// Claim notes the fingerprint of each task id that has none yet, and returns
	// the one that each of the ids has now.
	Claim(ctx context.Context, fingerprints map[string]string) (held map[string]string, err error)
}

const (
	claimTimeout = time.Second
	// claimPause is how long nobody is asked after a failure: every task would
	// wait for the same timeout.
	claimPause = time.Second
	// claimLines is how many lines of a batch are claimed at once.
	claimLines = 500
)

// claims compares tasks with what their keys were used for. That is a service to
// senders, not what keeps a task from being done twice: what cannot be compared
// is let through, and is then a repeat by its id alone.
type claims struct {
	fingerprints Fingerprints
	metrics      *metrics
	failures     zerolog.Logger
	resume       atomic.Int64 // Unix time in ns before which nobody is asked
}

// keyed reports whether the tasks of a request can be compared at all.
func (c *claims) keyed(r *http.Request) bool {
	return c.fingerprints != nil && r.Header.Get(headerIdempotencyKey) != ""
}

// check returns the tasks, by id, whose key was used for another task.
func (c *claims) check(ctx context.Context, tasks map[string]string) map[string]*Problem {
	if len(tasks) == 0 {
		return nil
	}
	if time.Now().UnixNano() < c.resume.Load() {
		c.metrics.claimsFailed.Add(float64(len(tasks)))
		return nil
	}
	// A sender that goes away is no failure of the store.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	held, err := c.fingerprints.Claim(ctx, tasks)
	if err != nil {
		c.resume.Store(time.Now().Add(claimPause).UnixNano())
		c.metrics.claimsFailed.Add(float64(len(tasks)))
		c.failures.Warn().Err(err).Int("tasks", len(tasks)).Msg("compare tasks with what their keys were used for")
		return nil
	}
	problems := make(map[string]*Problem)
	for id, fingerprint := range tasks {
		if first, ok := held[id]; ok && first != fingerprint {
			problems[id] = idempotencyKeyReused.at(ProblemError{
				Header: headerIdempotencyKey, Detail: "came with another task before, whose id is " + id,
			})
		}
	}
	return problems
}

// fingerprint returns a digest of what a sender said of a task, the priority
// being the wish. It leaves out the deadline: a sender that counts it from the
// moment of sending would never repeat itself. The tenant is part of the id.
func fingerprint(t *millrace.Task, wish millrace.Priority) string {
	h := sha256.New()
	write := func(b []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		h.Write(size[:])
		h.Write(b)
	}
	for _, s := range []string{t.Conversation, t.Type, string(wish), itoa(t.MaxAttempts)} {
		write([]byte(s))
	}
	write(t.Payload)
	if t.OnBusy != "" {
		// Not as an empty part of all others: a fingerprint that was taken before there
		// were policies must stay the same.
		write([]byte(fieldOnBusy + "=" + string(t.OnBusy)))
	}
	for _, name := range slices.Sorted(maps.Keys(t.Attributes)) {
		write([]byte(name))
		write([]byte(t.Attributes[name]))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
