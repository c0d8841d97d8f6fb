package llm

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// defaultRetryAfter is for a refusal that does not say how long.
	defaultRetryAfter = 5 * time.Second
	// maxRetryAfter is the longest wait that is believed.
	maxRetryAfter = time.Hour
	maxMessage    = 500
)

// ProviderError is a provider's answer that is an error.
type ProviderError struct {
	Provider string
	Model    string
	// Status is the HTTP status.
	Status int
	// Message is what the provider says, shortened.
	Message string
	// RetryAfter is how long the provider asks to be left alone. 0: it does not say.
	RetryAfter time.Duration
}

func (e *ProviderError) Error() string {
	text := fmt.Sprintf("provider %s, model %s: status %d", e.Provider, e.Model, e.Status)
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// NewProviderError describes a provider's error answer.
func (t Target) NewProviderError(status int, header http.Header, message string) *ProviderError {
	message = strings.ToValidUTF8(t.Provider.scrubText(message), "�")
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "") + "…"
	}
	return &ProviderError{
		Provider: t.Provider.name, Model: t.Model, Status: status, Message: message,
		RetryAfter: RetryAfter(header, time.Now()),
	}
}

// RetryAfter reads how long a server asks to be left alone, at most an hour:
// OpenAI's retry-after-ms, or the standard header (RFC 9110, seconds or a date).
// 0: it does not ask.
func RetryAfter(header http.Header, now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(header.Get("Retry-After-Ms"), 64); err == nil && ms > 0 {
		return time.Duration(min(ms, float64(maxRetryAfter.Milliseconds()))) * time.Millisecond
	}
	text := header.Get("Retry-After")
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds > 0 {
		return time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) {
		return min(at.Sub(now), maxRetryAfter)
	}
	return 0
}

// The outcomes of calls, as metrics name them.
const (
	outcomeOK          = "ok"
	outcomeRefused     = "rate_limited"
	outcomeServerError = "server_error"
	outcomeClientError = "client_error"
	outcomeFailed      = "failed"
)

func outcome(err error) string {
	var e *ProviderError
	switch {
	case err == nil:
		return outcomeOK
	case !errors.As(err, &e):
		return outcomeFailed
	case e.Status == http.StatusTooManyRequests:
		return outcomeRefused
	case e.retryable():
		return outcomeServerError
	}
	return outcomeClientError
}

// retryable reports whether the same request can succeed later.
func (e *ProviderError) retryable() bool {
	switch e.Status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return e.Status >= 500 || e.Status < 400
}

// dialFailed reports whether no connection could be made: nothing was sent.
func dialFailed(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
