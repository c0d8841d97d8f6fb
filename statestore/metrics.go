package statestore

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	opened      *prometheus.CounterVec
	outcomes    *prometheus.CounterVec
	batch       prometheus.Histogram
	duration    prometheus.Histogram
	retries     prometheus.Counter
	hotFailures prometheus.Counter
	repaid      *prometheus.CounterVec
	ambiguous   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		opened: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_statestore_opened_total", Help: "Conversations opened, by where they came from.",
		}, []string{"source"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_statestore_commits_total", Help: "Turns handed in to commit, by outcome.",
		}, []string{"outcome"}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_statestore_commit_batch_turns", Help: "Turns in one transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 10),
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_statestore_commit_seconds", Help: "Duration of one group commit.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_statestore_commit_retries_total", Help: "Group commits tried again after an outage or a deadlock.",
		}),
		hotFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_statestore_hot_write_failures_total", Help: "Writes of hot copies to Redis that failed.",
		}),
		repaid: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_steps_repaid_total", Help: "Steps that ran again although their outcome was journaled, by reason.",
		}, []string{"reason"}),
		ambiguous: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_steps_ambiguous_total", Help: "Steps found begun but without an outcome: their call may have happened.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.opened, m.outcomes, m.batch, m.duration, m.retries, m.hotFailures, m.repaid, m.ambiguous)
	}
	return m
}
