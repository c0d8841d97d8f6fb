package statestore

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type releaseMetrics struct {
	released  prometheus.Counter
	discarded prometheus.Counter
	failures  prometheus.Counter
	delay     prometheus.Histogram
	held      heldBack
}

func newReleaseMetrics(reg prometheus.Registerer) *releaseMetrics {
	m := &releaseMetrics{
		released: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_scheduled_released_total", Help: "Scheduled tasks released.",
		}),
		discarded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_scheduled_discarded_total", Help: "Scheduled tasks that had ended before their time, and were not released.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_scheduled_release_failures_total", Help: "Tries to release tasks that ended with an error, and were tried again.",
		}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_scheduled_release_delay_seconds", Help: "From the time of a scheduled task until it is released to the relay.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 18),
		}),
	}
	if reg != nil {
		reg.MustRegister(m.released, m.discarded, m.failures, m.delay, &m.held)
	}
	return m
}

func (m *releaseMetrics) lead(next *float64) { m.held.lead(next) }

func (m *releaseMetrics) follow() { m.held.follow() }

func (m *releaseMetrics) waits(n int64) { m.held.waits(n) }

// heldBack is what waits, as the leader has last seen it. Who does not lead says
// nothing: the others would count the same tasks again.
type heldBack struct {
	mu      sync.Mutex
	leads   bool
	counted bool
	waiting int64
	next    time.Time // when the next task is due; zero when none waits
}

func (h *heldBack) lead(next *float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leads, h.next = true, time.Time{}
	if next != nil {
		h.next = time.Now().Add(time.Duration(*next * float64(time.Second)))
	}
}

func (h *heldBack) follow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leads, h.counted = false, false
}

func (h *heldBack) waits(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting, h.counted = n, true
}

var (
	scheduledWaitingDesc = prometheus.NewDesc("millrace_scheduled_waiting",
		"Tasks that wait for their time, estimated when there are more than 10,000. Only the process that releases them says it.", nil, nil)
	scheduledLagDesc = prometheus.NewDesc("millrace_scheduled_lag_seconds",
		"For how long the first task that waits has been due, 0 when none is. Only the process that releases them says it.", nil, nil)
)

// Describe is for the registry.
func (h *heldBack) Describe(descs chan<- *prometheus.Desc) {
	descs <- scheduledWaitingDesc
	descs <- scheduledLagDesc
}

// Collect is for the registry. The lag grows also while PostgreSQL does not answer.
func (h *heldBack) Collect(metrics chan<- prometheus.Metric) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.leads {
		return
	}
	lag := 0.0
	if !h.next.IsZero() {
		lag = max(0, time.Since(h.next).Seconds())
	}
	metrics <- prometheus.MustNewConstMetric(scheduledLagDesc, prometheus.GaugeValue, lag)
	if h.counted {
		metrics <- prometheus.MustNewConstMetric(scheduledWaitingDesc, prometheus.GaugeValue, float64(h.waiting))
	}
}
