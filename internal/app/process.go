package app

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/kafka"
	"millrace/internal/ops"
	"millrace/internal/settings"
	"millrace/llm/proxy"
	"millrace/ratelimit"
)

// Process is what every process has.
type Process struct {
	Settings settings.Settings
	Log      zerolog.Logger
	Metrics  prometheus.Registerer
	Registry *prometheus.Registry
	Health   *ops.Health
	// Host is this machine's name, Addr where others reach the process over HTTP.
	// Empty: they do not.
	Host, Addr string
	// Kafka counts what the process' Kafka clients do. Nil: nobody counts.
	Kafka *kafka.Metrics
	// Limits are the providers' limits for when the settings name no file.
	Limits ratelimit.Limits
	// Turns are the turns that LLM calls can be made for. Workers that share a
	// proxy share them. Nil: the worker has its own.
	Turns *proxy.Turns
}

// healthTimeout bounds one health check.
const healthTimeout = 3 * time.Second

// NewProcess returns a process with metrics and health of its own.
func NewProcess(s settings.Settings, log zerolog.Logger, registry *prometheus.Registry) (*Process, error) {
	clients, err := kafka.NewMetrics(registry)
	if err != nil {
		return nil, fmt.Errorf("register Kafka metrics: %w", err)
	}
	return &Process{
		Settings: s, Log: log, Metrics: registry, Registry: registry,
		Health: ops.NewHealth(healthTimeout), Kafka: clients,
	}, nil
}

// kafkaOptions returns how a part of the process connects to Kafka.
func (p *Process) kafkaOptions(part string) ([]kgo.Opt, error) {
	opts, err := kafka.Options(&p.Settings, part, p.Log)
	if err != nil {
		return nil, err
	}
	if p.Kafka != nil {
		opts = append(opts, p.Kafka.Client(part))
	}
	return opts, nil
}
