package ratelimit

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	waits    *prometheus.HistogramVec
	refusals *prometheus.CounterVec
	failures *prometheus.CounterVec
	freezes  *prometheus.CounterVec
	waiting  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "millrace_ratelimit_wait_seconds",
			Help:    "Time from asking for a grant to getting it.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
		}, []string{"account", "model", "priority"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ratelimit_refusals_total",
			Help: "Times that a request was told to ask again, by what refused it.",
		}, []string{"account", "model", "blocker"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ratelimit_failures_total",
			Help: "Requests that ended without a grant, by reason.",
		}, []string{"account", "model", "reason"}),
		freezes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ratelimit_freezes_total",
			Help: "Freezes after a provider's refusal.",
		}, []string{"account", "model"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_ratelimit_waiting_requests",
			Help: "Requests that wait for a grant in this process.",
		}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.waits, m.refusals, m.failures, m.freezes, m.waiting} {
		if err := r.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register metrics: %w", err))
		}
	}
	return m, errors.Join(errs...)
}

func (m *metrics) granted(r *Request, waited time.Duration) {
	m.waits.WithLabelValues(r.Account, r.Model, string(r.Priority)).Observe(waited.Seconds())
}

func (m *metrics) refused(r *Request, blocker string) {
	m.refusals.WithLabelValues(r.Account, r.Model, blocker).Inc()
}

func (m *metrics) failed(r *Request, err error) {
	reason := "cancelled"
	switch {
	case errors.Is(err, ErrUnavailable):
		reason = "unavailable"
	case errors.Is(err, ErrTooLarge):
		reason = "too_large"
	}
	m.failures.WithLabelValues(r.Account, r.Model, reason).Inc()
}
