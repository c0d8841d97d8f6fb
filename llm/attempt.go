package llm

import (
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"

	"millrace"
	"millrace/ratelimit"
)

// leaseMargin is what a lease lasts over the call's timeout.
const leaseMargin = 10 * time.Second

// Attempt is one call of a provider that was granted. It ends with the first of
// Succeed and Fail, exactly once.
type Attempt struct {
	client *Client
	turn   *millrace.Turn
	target Target
	key    estimateKey
	grant  *ratelimit.Grant
	span   trace.Span
	cancel context.CancelFunc
	start  time.Time
}

// Answer is what a provider's answer is described by.
type Answer struct {
	ID           string
	Model        string
	FinishReason string
	InputTokens  int64
	OutputTokens int64
	// Unmeasured says that the provider reported no usage: what was reserved
	// counts.
	Unmeasured bool
}

// Begin waits for the grant of one call and returns the context that the call
// has to be made under. requestBytes is the length of the request, maxTokens the
// bound on its answer, 0 for none.
func (c *Client) Begin(ctx context.Context, turn *millrace.Turn, t Target, requestBytes int, maxTokens int64) (context.Context, *Attempt, error) {
	task := turn.Task()
	key := estimateKey{task.Type, t.Provider.name, t.Model}
	grant, err := c.limiter.Acquire(ctx, ratelimit.Request{
		Account:      t.Provider.name,
		Model:        t.Model,
		Tenant:       task.Tenant,
		Priority:     task.Priority,
		InputTokens:  estimateInput(requestBytes),
		OutputTokens: c.estimator.output(key, maxTokens),
		Lease:        c.timeout + leaseMargin,
	})
	if err != nil {
		if errors.Is(err, ratelimit.ErrTooLarge) {
			err = millrace.Permanent(err)
		}
		return ctx, nil, err
	}
	attributes := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(
			semconv.GenAIOperationNameChat,
			semconv.GenAIProviderNameKey.String(string(t.Provider.kind)),
			semconv.GenAIRequestModel(t.Model),
			semconv.ServerAddress(t.Provider.base.Hostname()),
		),
	}
	if task.Conversation != "" {
		attributes = append(attributes, trace.WithAttributes(semconv.GenAIConversationID(task.Conversation)))
	}
	if maxTokens > 0 {
		attributes = append(attributes, trace.WithAttributes(semconv.GenAIRequestMaxTokens(int(maxTokens))))
	}
	ctx, span := otel.Tracer("millrace/llm").Start(ctx, "chat "+t.Model, attributes...)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	return ctx, &Attempt{client: c, turn: turn, target: t, key: key, grant: grant, span: span, cancel: cancel, start: time.Now()}, nil
}

// Succeed ends the call with an answer and returns the usage that it counts as.
func (a *Attempt) Succeed(ctx context.Context, answer Answer) millrace.Usage {
	a.turn.Reached(a.target.Provider.dependency())
	usage := millrace.Usage{Calls: 1, InputTokens: answer.InputTokens, OutputTokens: answer.OutputTokens}
	if answer.Unmeasured {
		a.settled(a.grant.Release(ctx))
	} else {
		a.settled(a.grant.Settle(ctx, ratelimit.Usage{InputTokens: answer.InputTokens, OutputTokens: answer.OutputTokens}))
		a.client.estimator.learn(a.key, answer.OutputTokens)
		m := a.client.metrics
		m.tokens.WithLabelValues(a.target.Provider.name, a.target.Model, "input").Add(float64(max(answer.InputTokens, 0)))
		m.tokens.WithLabelValues(a.target.Provider.name, a.target.Model, "output").Add(float64(max(answer.OutputTokens, 0)))
		a.span.SetAttributes(
			semconv.GenAIUsageInputTokens(int(answer.InputTokens)),
			semconv.GenAIUsageOutputTokens(int(answer.OutputTokens)))
	}
	a.span.SetAttributes(semconv.GenAIResponseID(answer.ID), semconv.GenAIResponseModel(answer.Model))
	if answer.FinishReason != "" {
		a.span.SetAttributes(semconv.GenAIResponseFinishReasons(answer.FinishReason))
	}
	a.end(nil)
	return usage
}

// Fail ends the call with an error, freezes the account's model if it was
// refused, and returns the error as a handler should return it: permanent when no
// retry helps, with a delay when the provider asks for one, an outage of the
// provider ([millrace.UnavailableDependency]) when it cannot be connected to or
// answers that the fault is its own (5xx). A call that was sent and got no answer
// is none: it may have been paid for, so there is an end to repeating it.
func (a *Attempt) Fail(ctx context.Context, err error) error {
	var refusal *ProviderError
	if !errors.As(err, &refusal) {
		// Nobody knows whether the provider worked on it: what was reserved counts.
		a.settled(a.grant.Release(ctx))
		sent := ctx.Err() != nil || !dialFailed(err)
		err = a.target.Provider.scrub(err)
		if !sent {
			err = millrace.UnavailableDependency(a.target.Provider.dependency(), err)
		}
		a.end(err)
		return err
	}
	if refusal.Status < http.StatusInternalServerError {
		a.turn.Reached(a.target.Provider.dependency())
	}
	switch {
	case refusal.Status == http.StatusTooManyRequests:
		delay := refusal.RetryAfter
		if delay == 0 {
			delay = defaultRetryAfter
		}
		if freezeErr := a.client.limiter.Freeze(context.WithoutCancel(ctx), a.target.Provider.name, a.target.Model, delay); freezeErr != nil {
			a.client.log.Warn().Err(freezeErr).Msg("a provider's refusal is not known to other workers")
		}
		a.settled(a.grant.Settle(ctx, ratelimit.Usage{}))
		err = millrace.RetryAfter(delay, err)
	case !refusal.retryable():
		a.settled(a.grant.Settle(ctx, ratelimit.Usage{}))
		err = millrace.Permanent(err)
	default:
		a.settled(a.grant.Release(ctx))
		if refusal.Status >= http.StatusInternalServerError {
			err = millrace.UnavailableDependency(a.target.Provider.dependency(), err)
		}
		if refusal.RetryAfter > 0 {
			err = millrace.RetryAfter(refusal.RetryAfter, err)
		}
	}
	a.end(err)
	return err
}

// settled reports a grant that could not be ended. The call's outcome does not
// depend on it: the reservation stands until it ages out.
func (a *Attempt) settled(err error) {
	if err != nil {
		a.client.log.Warn().Err(err).Str("provider", a.target.Provider.name).Msg("a reservation stands until it ages out")
	}
}

func (a *Attempt) end(err error) {
	m := a.client.metrics
	m.calls.WithLabelValues(a.target.Provider.name, a.target.Model, outcome(err)).Inc()
	m.duration.WithLabelValues(a.target.Provider.name, a.target.Model).Observe(time.Since(a.start).Seconds())
	if err != nil {
		a.span.SetStatus(codes.Error, err.Error())
		a.span.SetAttributes(semconv.ErrorTypeKey.String(outcome(err)))
	}
	a.span.End()
	a.cancel()
}
