package app

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"millrace"
)

// exporting says that spans are wanted by somebody.
var exporting atomic.Bool

// StartTracing exports spans over OTLP when the standard variables
// (OTEL_EXPORTER_OTLP_ENDPOINT or …_TRACES_ENDPOINT) say where to. The returned
// function flushes what is left.
func StartTracing(ctx context.Context, service string, log zerolog.Logger) (stop func(), err error) {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return func() {}, nil
	}
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("start tracing: %w", err)
	}
	res, err := resource.New(ctx, resource.WithAttributes(semconv.ServiceName(service)), resource.WithFromEnv(), resource.WithHost())
	if err != nil {
		return nil, fmt.Errorf("start tracing: %w", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(res))
	otel.SetTracerProvider(provider)
	exporting.Store(true)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn().Err(err).Msg("tracing") }))
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn().Err(err).Msg("cannot flush the last spans")
		}
	}, nil
}

// traced runs every turn in a span that continues the trace of the task's
// sender.
func traced(h millrace.Handler) millrace.Handler {
	tracer := otel.Tracer("millrace")
	return millrace.HandlerFunc(func(ctx context.Context, turn *millrace.Turn) error {
		task := turn.Task()
		if task.TraceParent == "" && !exporting.Load() {
			return h.Handle(ctx, turn) // no trace to continue, nobody to begin one for
		}
		ctx = otel.GetTextMapPropagator().Extract(ctx, propagation.MapCarrier{
			"traceparent": task.TraceParent, "tracestate": task.TraceState,
		})
		ctx, span := tracer.Start(ctx, "turn "+task.Type, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			attribute.String("millrace.task.id", task.ID),
			attribute.String("millrace.conversation.id", task.Conversation),
			attribute.String("millrace.priority", string(task.Priority)),
			attribute.Int("millrace.attempt", turn.Attempt()),
		))
		defer span.End()
		err := h.Handle(ctx, turn)
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, err.Error())
		}
		return err
	})
}
