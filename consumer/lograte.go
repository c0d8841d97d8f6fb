package consumer

import (
	"errors"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// sparseEvery is how often a repeated message is logged.
const sparseEvery = time.Second

// sparse lets one message a second through: what fails for every lane or every
// fetch must not bury the rest of the log.
type sparse struct {
	mu       sync.Mutex
	next     time.Time
	heldBack int
}

// allow reports whether a message may be logged now, and how many were not
// since the last one.
func (s *sparse) allow(now time.Time) (heldBack int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		s.heldBack++
		return 0, false
	}
	heldBack, s.heldBack = s.heldBack, 0
	s.next = now.Add(sparseEvery)
	return heldBack, true
}

func (e *Engine) noteFetchError(topic string, partition int32, err error) {
	e.metrics.fetchErrors.Inc()
	heldBack, ok := e.fetchErrors.allow(time.Now())
	if !ok {
		return
	}
	line := e.log.Error().Err(err).Int("not_logged", heldBack)
	var session *kgo.ErrGroupSession
	switch {
	case errors.Is(err, kerr.InconsistentGroupProtocol):
		line.Str("group", Group(e.cfg.TopicPrefix, e.cfg.Pool)).
			Msg("the consumer group has members that are no Millrace workers, or workers of an incompatible version; trying to join again")
	case errors.Is(err, kerr.FencedInstanceID):
		line.Str("group", Group(e.cfg.TopicPrefix, e.cfg.Pool)).Str("instance", e.cfg.InstanceID).
			Msg("another worker of the pool runs under the same name; trying to join again")
	case errors.As(err, &session):
		line.Str("group", Group(e.cfg.TopicPrefix, e.cfg.Pool)).
			Msg("fell out of the consumer group or cannot join it; trying to join again")
	default:
		line.Str("topic", topic).Int32("partition", partition).Msg("fetch failed; the client tries again")
	}
}
