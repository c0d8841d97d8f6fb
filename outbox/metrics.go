package outbox

import "github.com/prometheus/client_golang/prometheus"

type relayMetrics struct {
	published prometheus.Counter
	rejected  prometheus.Counter
	failures  prometheus.Counter
	owned     prometheus.Gauge
	delay     prometheus.Histogram
	lag       lag
}

func newRelayMetrics(reg prometheus.Registerer) *relayMetrics {
	m := &relayMetrics{
		published: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_relay_published_total", Help: "Events published to Kafka.",
		}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_relay_rejected_total", Help: "Events that can never be published, moved to the dead letters.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "millrace_relay_interruptions_total", Help: "Publishing sessions that ended with an error and began anew.",
		}),
		owned: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "millrace_relay_owned_shards", Help: "Outbox shards that this relay owns.",
		}),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "millrace_relay_delay_seconds", Help: "From the turn's end until its event is committed to Kafka.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
	}
	if reg != nil {
		reg.MustRegister(m.published, m.rejected, m.failures, m.owned, m.delay, &m.lag)
	}
	return m
}
