package ingest

import (
	"context"
	"errors"
	"net/http"
	"time"

	"millrace"
)

// Eraser erases conversations.
type Eraser interface {
	// Erase makes the erasure of a conversation durable and returns how far it has
	// come, or [millrace.ErrNotFound].
	Erase(ctx context.Context, conversation string) (millrace.Erasure, error)
}

func (s *Server) deleteConversation(w http.ResponseWriter, r *http.Request) *Problem {
	id, problem := checkPathID(r, millrace.MaxConversationBytes)
	if problem != nil {
		return problem
	}
	if problem := checkQuery(r); problem != nil {
		return problem
	}
	if s.cfg.Eraser == nil {
		return storeNotConfigured.problem(readerMissing, s.cfg.ReaderSetting)
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.ReadTimeout)
	defer cancel()
	erasure, err := s.cfg.Eraser.Erase(ctx, id)
	switch {
	case errors.Is(err, millrace.ErrNotFound):
		return conversationNotFound.problem("conversation %s is not known", clip(id))
	case err != nil:
		if r.Context().Err() == nil {
			s.failures.Warn().Err(err).Str("conversation", id).Msg("erase conversation")
		}
		return storeUnavailable.problem("conversation %s could not be erased; it may have been", clip(id)).retry(time.Second)
	case !erasure.Done:
		return s.writeJSON(w, http.StatusAccepted, erasure)
	}
	s.within(w, func() { w.WriteHeader(http.StatusNoContent) })
	return nil
}
