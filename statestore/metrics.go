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
	txOpen      prometheus.Gauge
	txWait      prometheus.Histogram
	txLasted    prometheus.Histogram
	txUnknown   prometheus.Counter
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
		txOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_statestore_tx_open", Help: "Turns that have a transaction of their own, and a connection for it.",
		}),
		txWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_statestore_tx_wait_seconds", Help: "How long turns waited for a transaction of their own: for their share of the connections, and for the conversation's lock.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		txLasted: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_statestore_tx_seconds", Help: "How long turns kept a transaction of their own.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		txUnknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_statestore_tx_unknown_total", Help: "Transactions of turns whose connection was lost in their commit, so that PostgreSQL was asked for the outcome.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.opened, m.outcomes, m.batch, m.duration, m.retries, m.hotFailures, m.repaid, m.ambiguous, m.txOpen, m.txWait, m.txLasted, m.txUnknown)
	}
	return m
}
