package consumer

import (
	"github.com/prometheus/client_golang/prometheus"

	"millrace"
)

type metrics struct {
	// byPriority holds what is counted for every turn, looked up once.
	byPriority   []priorityMetrics
	turns        *prometheus.CounterVec
	deadLetters  *prometheus.CounterVec
	busy         *prometheus.CounterVec
	queueWait    *prometheus.HistogramVec
	turnSeconds  *prometheus.HistogramVec
	redeliveries prometheus.Counter
	rebalances   prometheus.Counter
	lost         prometheus.Counter
	fetchErrors  prometheus.Counter
	busySlots    prometheus.Gauge
	lanes        prometheus.Gauge
	waitingBytes prometheus.Gauge
	partitions   prometheus.Gauge
	paused       prometheus.Gauge
	stuckTurns   prometheus.Gauge

	breakerOpen   *prometheus.GaugeVec
	breakerOpened *prometheus.CounterVec
	breakerProbes *prometheus.CounterVec

	handedOver       prometheus.Counter
	handoverFailures prometheus.Counter
	holds            prometheus.Gauge
	secondRuns       prometheus.Counter
	leases           prometheus.Gauge
	parked           prometheus.Gauge
	leaseless        prometheus.Counter
	leasesLost       prometheus.Counter
	leaseFailures    prometheus.Counter
	deaths           prometheus.Counter
	suspects         prometheus.Gauge
	aloneTurns       prometheus.Counter
	holdSeconds      prometheus.Histogram
}

type priorityMetrics struct {
	queueWait   prometheus.Observer
	turnSeconds prometheus.Observer
	completed   prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, priorities []millrace.Priority) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "millrace_consumer_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "millrace_consumer_" + name, Help: help})
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_consumer_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 14),
		}, labels)
	}
	m := &metrics{
		turns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_consumer_turns_total", Help: "Turns by priority and how they ended.",
		}, []string{"priority", "outcome"}),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_consumer_dead_letters_total", Help: "Tasks given up on, by reason.",
		}, []string{"reason"}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_consumer_busy_total", Help: "Tasks that ended as they did because their conversation was busy: rejected, interrupted by another, or coalesced into the turn of another.",
		}, []string{"outcome"}),
		queueWait:    histogram("queue_wait_seconds", "From a task's time until its first turn starts.", "priority"),
		turnSeconds:  histogram("turn_seconds", "Duration of one handler call.", "priority"),
		redeliveries: counter("redeliveries_total", "Records of tasks that were complete already."),
		rebalances:   counter("rebalances_total", "Assignments that brought partitions."),
		lost:         counter("lost_partitions_total", "Partitions lost without being revoked first."),
		fetchErrors:  counter("fetch_errors_total", "Errors that fetches returned."),
		busySlots:    gauge("busy_slots", "Turns running now."),
		lanes:        gauge("lanes", "Conversations, and tasks without one, that wait, run, or are kept for their next task."),
		waitingBytes: gauge("waiting_bytes", "Memory held by records that wait or run."),
		partitions:   gauge("partitions", "Partitions assigned, over all priorities."),
		paused:       gauge("paused_partitions", "Partitions not read because intake is at its bound."),
		stuckTurns:   gauge("stuck_turns", "Turns whose handler goes on although its context has ended."),

		breakerOpen: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_consumer_breaker_open",
			Help: "Whether a dependency is out; of one that only some turns call, the task types that wait for it.",
		}, []string{"dependency"}),
		breakerOpened: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_consumer_breaker_opened_total", Help: "How often a dependency was found to be out.",
		}, []string{"dependency"}),
		breakerProbes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_consumer_breaker_probes_total", Help: "Tries of a dependency that is out, by what came of them: answered, failed.",
		}, []string{"dependency", "outcome"}),

		handedOver:       counter("handed_over_turns_total", "Turns that went on after their partition was given up, announced to its next owner."),
		handoverFailures: counter("handover_failures_total", "Announcements of running turns that Redis did not take or give."),
		holds:            gauge("holds", "Conversations that wait for an earlier owner's turn."),
		secondRuns:       counter("second_runs_total", "Turns that ran for nothing: another one of their conversation, or of the same task, committed first."),
		leases:           gauge("leases", "Conversations that this worker has the lease of. Pools that share conversations take one for every turn."),
		parked:           gauge("lease_waits", "Conversations that wait for another pool's turn."),
		leaseless:        counter("leaseless_turns_total", "Turns without a lease because Redis has not answered for long; a turn of another pool may run beside."),
		leasesLost:       counter("leases_lost_total", "Renewals of a running turn's lease that another turn has meanwhile."),
		leaseFailures:    counter("lease_failures_total", "Words with Redis about leases that failed."),
		holdSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_consumer_hold_seconds", Help: "How long conversations waited for an earlier owner's turn.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 12),
		}),

		deaths:     counter("deaths_counted_total", "Deaths of workers counted against turns that had run for more than a second there."),
		suspects:   gauge("suspects", "Tasks that wait to run alone because two workers died that ran them."),
		aloneTurns: counter("alone_turns_total", "Turns that ran alone in their worker because workers died that ran their task."),
	}
	for _, p := range priorities {
		m.byPriority = append(m.byPriority, priorityMetrics{
			queueWait:   m.queueWait.WithLabelValues(string(p)),
			turnSeconds: m.turnSeconds.WithLabelValues(string(p)),
			completed:   m.turns.WithLabelValues(string(p), string(millrace.StatusCompleted)),
		})
	}
	if reg != nil {
		reg.MustRegister(m.breakerOpen, m.breakerOpened, m.breakerProbes, m.turns, m.deadLetters, m.busy, m.queueWait, m.turnSeconds, m.redeliveries, m.rebalances, m.lost,
			m.secondRuns, m.leases, m.parked, m.leaseless, m.leasesLost, m.leaseFailures, m.handedOver, m.handoverFailures, m.holds, m.holdSeconds, m.deaths, m.suspects, m.aloneTurns,
			m.fetchErrors, m.busySlots, m.lanes, m.waitingBytes, m.partitions, m.paused, m.stuckTurns)
	}
	return m
}
