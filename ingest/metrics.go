package ingest

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	accepted             *prometheus.CounterVec
	scheduled            *prometheus.CounterVec
	refused              *prometheus.CounterVec
	produceSeconds       prometheus.Histogram
	scheduleSeconds      prometheus.Histogram
	requestSeconds       *prometheus.HistogramVec
	waiting              prometheus.Gauge
	lagErrors            prometheus.Counter
	lagUnknown           *prometheus.CounterVec
	announcementsDropped prometheus.Counter
	announcementsFailed  prometheus.Counter
	claimsFailed         prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_ingest_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_ingest_" + name, Help: help}, labels)
	}
	buckets := []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60}
	return &metrics{
		accepted:  counters("accepted_total", "Tasks acknowledged by Kafka.", "priority"),
		scheduled: counters("scheduled_total", "Tasks stored to be held back until their run_at.", "priority"),
		refused:   counters("refused_total", "Tasks and requests refused, by problem type.", "reason"),
		produceSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_ingest_produce_seconds", Buckets: buckets,
			Help: "Time from handing a record to the producer until its fate is known.",
		}),
		scheduleSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_ingest_schedule_seconds", Buckets: buckets,
			Help: "Time to store tasks that are held back, those of a batch together.",
		}),
		requestSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_ingest_request_seconds", Buckets: buckets,
			Help: "Time to answer a request.",
		}, []string{"route", "status"}),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_ingest_waiting_requests", Help: "Long polls that are open.",
		}),
		lagErrors:            counter("lag_errors_total", "Failed reads of the lag for admission."),
		lagUnknown:           counters("lag_unknown_total", "Tasks not judged by the lag of their priority because it was not known.", "priority"),
		announcementsDropped: counter("announcements_dropped_total", "Announcements of queued tasks dropped because the queue was full."),
		announcementsFailed:  counter("announcements_failed_total", "Announcements of queued tasks that the store did not take."),
		claimsFailed:         counter("keys_not_compared_total", "Tasks with an Idempotency-Key that could not be compared with what the key was used for."),
	}
}

func (m *metrics) register(r prometheus.Registerer, classifier Classifier) error {
	collectors := []prometheus.Collector{
		m.accepted, m.scheduled, m.refused, m.produceSeconds, m.scheduleSeconds, m.requestSeconds, m.waiting,
		m.lagErrors, m.lagUnknown, m.announcementsDropped, m.announcementsFailed, m.claimsFailed,
	}
	if c, ok := classifier.(prometheus.Collector); ok {
		collectors = append(collectors, c)
	}
	var errs []error
	for _, c := range collectors {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(errs...)
}
