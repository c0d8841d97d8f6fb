package ingest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"millrace"
)

// Server serves the HTTP API.
//
// Its handler sets the deadlines of bodies and answers by itself, because a long
// poll and a large batch need other ones than a small task: the [http.Server]
// around it should set ReadHeaderTimeout and IdleTimeout, but neither
// ReadTimeout nor WriteTimeout.
type Server struct {
	cfg       Config
	decoder   taskDecoder
	admission *admission
	announcer *announceQueue
	claims    *claims
	unseen    *cancelBudget
	metrics   *metrics
	handler   http.Handler
	gate      *gate
	waiters   chan struct{}
	stopping  chan struct{} // closed when Run's context ends
	stopOnce  sync.Once
	failures  zerolog.Logger
	now       func() time.Time
}

// New returns a server, or all that is wrong with cfg.
func New(cfg Config) (*Server, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("ingest: %w", err)
	}
	s := &Server{
		cfg: cfg,
		decoder: taskDecoder{
			priorities: cfg.Priorities,
			maxPayload: cfg.MaxPayloadBytes,
			maxDepth:   cfg.MaxDepth,
		},
		metrics:  newMetrics(),
		gate:     newGate(),
		waiters:  make(chan struct{}, cfg.MaxWaiters),
		stopping: make(chan struct{}),
		// An outage fails every request: a few lines a second say as much.
		failures: cfg.Logger.Sample(&zerolog.BurstSampler{Burst: 5, Period: time.Second}),
		now:      time.Now,
	}
	s.admission = newAdmission(&s.cfg, s.metrics, s.failures)
	s.announcer = newAnnounceQueue(&s.cfg, s.metrics, s.failures)
	s.claims = &claims{fingerprints: cfg.Fingerprints, metrics: s.metrics, failures: s.failures}
	s.unseen = newCancelBudget(s.now)
	handler, err := s.routes()
	if err != nil {
		return nil, fmt.Errorf("ingest: %w", err)
	}
	s.handler = handler
	if cfg.Metrics != nil {
		if err := s.metrics.register(cfg.Metrics, cfg.Classifier); err != nil {
			return nil, fmt.Errorf("ingest: register metrics: %w", err)
		}
	}
	return s, nil
}

// Handler returns the API: everything under /v1, /openapi.json, /openapi.yaml
// and /docs. Whatever else it is asked for it answers with a 404 problem.
func (s *Server) Handler() http.Handler { return s.handler }

// Run reads the lag for admission and passes announcements on until ctx ends.
// Then it refuses new tasks, ends long polls, waits for the requests that are
// producing and flushes the producer. It returns nil when all that was accepted
// is stored. Call it once.
//
// To stop a process: end Run's context, shut the http.Server down, wait for
// both, close the producer.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.admission.run(ctx) })
	announced := make(chan struct{})
	wg.Go(func() { s.announcer.run(ctx, announced) })

	<-ctx.Done()
	s.stopOnce.Do(func() { close(s.stopping) })
	s.gate.close()

	// The drain has to outlive the context whose end starts it.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	var errs []error
	select {
	case <-s.gate.empty:
	case <-drain.Done():
		errs = append(errs, errors.New("requests are still open"))
	}
	if err := s.cfg.Producer.Flush(drain); err != nil {
		errs = append(errs, fmt.Errorf("flush producer: %w", err))
	}
	close(announced)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("drain ingest: %w", err)
	}
	return nil
}

// classify sets the task's priority: what the classifier says, or else what its
// sender wishes for, or else the default.
func (s *Server) classify(ctx context.Context, task *millrace.Task) *Problem {
	wish := task.Priority
	if s.cfg.Classifier != nil {
		p, err := s.cfg.Classifier.Classify(ctx, &Request{
			Type: task.Type, Tenant: task.Tenant, Conversation: task.Conversation, Size: len(task.Payload),
			Priority: wish, Deadline: task.Deadline, Now: task.Time, Attributes: task.Attributes,
		})
		if err == nil && p != "" && !slices.Contains(s.cfg.Priorities, p) {
			err = fmt.Errorf("the classifier chose the unknown priority %q", string(p))
		}
		if err != nil {
			s.failures.Error().Err(err).Str("task", task.ID).Msg("classify task")
			return classificationFailed.problem("the classifier failed").retry(5 * time.Second)
		}
		if p != "" {
			wish = p
		}
	}
	if wish == "" {
		wish = s.cfg.DefaultPriority
	}
	task.Priority = wish
	return nil
}
