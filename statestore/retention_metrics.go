package statestore

import "github.com/prometheus/client_golang/prometheus"

type retentionMetrics struct {
	rows     *prometheus.CounterVec
	behind   *prometheus.GaugeVec
	failures prometheus.Counter
}

func newRetentionMetrics(reg prometheus.Registerer) *retentionMetrics {
	m := &retentionMetrics{
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_retention_deleted_rows_total", Help: "Rows that the retention has deleted or, of completions of erased conversations, emptied, by table.",
		}, []string{"table"}),
		behind: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "millrace_retention_behind_seconds", Help: "For how long at most a row has been there that should be gone, by what it is of. The leader alone tells.",
		}, []string{"of"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_retention_failures_total", Help: "Tries to delete that failed.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.rows, m.behind, m.failures)
	}
	return m
}
