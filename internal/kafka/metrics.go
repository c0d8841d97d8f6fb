package kafka

import (
	"errors"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Metrics counts what the Kafka clients of a process do. Clients of one part
// share their counts, so that they may come and go.
type Metrics struct {
	connects    *prometheus.CounterVec
	disconnects *prometheus.CounterVec
	requests    *prometheus.HistogramVec
	failures    *prometheus.CounterVec
	throttled   *prometheus.CounterVec
	produced    *prometheus.CounterVec
	producedB   *prometheus.CounterVec
	fetched     *prometheus.CounterVec
	fetchedB    *prometheus.CounterVec
}

// NewMetrics registers the metrics with registry, if it is not nil.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_kafka_" + name, Help: help}, append([]string{"client"}, labels...))
	}
	m := &Metrics{
		connects:    counter("connects_total", "Attempts to connect to a broker.", "outcome"),
		disconnects: counter("disconnects_total", "Connections to a broker that ended."),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "millrace_kafka_request_duration_seconds", Help: "Time from the write of a request to the end of its answer.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"client", "request"}),
		failures:  counter("request_failures_total", "Requests that could not be written, or got no answer.", "request"),
		throttled: counter("throttled_seconds_total", "Time that brokers have asked clients to hold back."),
		produced:  counter("produced_records_total", "Records written to a topic, repeats included.", "topic"),
		producedB: counter("produced_bytes_total", "Bytes of them, compressed.", "topic"),
		fetched:   counter("fetched_records_total", "Records read from a topic.", "topic"),
		fetchedB:  counter("fetched_bytes_total", "Bytes of them, compressed.", "topic"),
	}
	if registry == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.connects, m.disconnects, m.requests, m.failures, m.throttled, m.produced, m.producedB, m.fetched, m.fetchedB,
	} {
		errs = append(errs, registry.Register(c))
	}
	return m, errors.Join(errs...)
}

// Client returns the option that counts what a client does under the name of
// its part.
func (m *Metrics) Client(part string) kgo.Opt { return kgo.WithHooks(&hooks{m, part}) }

type hooks struct {
	m    *Metrics
	part string
}

var (
	_ kgo.HookBrokerConnect       = (*hooks)(nil)
	_ kgo.HookBrokerDisconnect    = (*hooks)(nil)
	_ kgo.HookBrokerE2E           = (*hooks)(nil)
	_ kgo.HookBrokerThrottle      = (*hooks)(nil)
	_ kgo.HookProduceBatchWritten = (*hooks)(nil)
	_ kgo.HookFetchBatchRead      = (*hooks)(nil)
)

func (h *hooks) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	outcome := "connected"
	if err != nil {
		outcome = "failed"
	}
	h.m.connects.WithLabelValues(h.part, outcome).Inc()
}

func (h *hooks) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) {
	h.m.disconnects.WithLabelValues(h.part).Inc()
}

func (h *hooks) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	request := kmsg.NameForKey(key)
	if e2e.Err() != nil {
		h.m.failures.WithLabelValues(h.part, request).Inc()
		return
	}
	h.m.requests.WithLabelValues(h.part, request).Observe(e2e.DurationE2E().Seconds())
}

func (h *hooks) OnBrokerThrottle(_ kgo.BrokerMetadata, interval time.Duration, _ bool) {
	h.m.throttled.WithLabelValues(h.part).Add(interval.Seconds())
}

func (h *hooks) OnProduceBatchWritten(_ kgo.BrokerMetadata, topic string, _ int32, batch kgo.ProduceBatchMetrics) {
	h.m.produced.WithLabelValues(h.part, topic).Add(float64(batch.NumRecords))
	h.m.producedB.WithLabelValues(h.part, topic).Add(float64(batch.CompressedBytes))
}

func (h *hooks) OnFetchBatchRead(_ kgo.BrokerMetadata, topic string, _ int32, batch kgo.FetchBatchMetrics) {
	h.m.fetched.WithLabelValues(h.part, topic).Add(float64(batch.NumRecords))
	h.m.fetchedB.WithLabelValues(h.part, topic).Add(float64(batch.CompressedBytes))
}
