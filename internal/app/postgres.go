package app

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// poolMetrics shows how a process uses its share of PostgreSQL's connections.
type poolMetrics struct{ pool *pgxpool.Pool }

var (
	poolConnsDesc = prometheus.NewDesc("millrace_postgres_connections",
		"Connections to PostgreSQL, by whether they are in use.", []string{"state"}, nil)
	poolMaxDesc = prometheus.NewDesc("millrace_postgres_connections_max",
		"Connections to PostgreSQL that are opened at most.", nil, nil)
	poolWaitsDesc = prometheus.NewDesc("millrace_postgres_waits_total",
		"How often somebody waited for a connection to PostgreSQL: all were in use, or a new one was opened.", nil, nil)
	poolWaitedDesc = prometheus.NewDesc("millrace_postgres_wait_seconds_total",
		"How long was waited for connections to PostgreSQL.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m poolMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{poolConnsDesc, poolMaxDesc, poolWaitsDesc, poolWaitedDesc} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (m poolMetrics) Collect(out chan<- prometheus.Metric) {
	stat := m.pool.Stat()
	gauge := func(desc *prometheus.Desc, value int32, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	gauge(poolConnsDesc, stat.AcquiredConns(), "in_use")
	gauge(poolConnsDesc, stat.IdleConns(), "idle")
	gauge(poolMaxDesc, stat.MaxConns())
	out <- prometheus.MustNewConstMetric(poolWaitsDesc, prometheus.CounterValue, float64(stat.EmptyAcquireCount()))
	out <- prometheus.MustNewConstMetric(poolWaitedDesc, prometheus.CounterValue, stat.EmptyAcquireWaitTime().Seconds())
}

// notePooler warns of a pooler that statements will not get through. It is told by
// the number of the session, which a pooler makes up for each of its clients.
//
// A pooler that hands connections out by transaction takes what was prepared on one
// to another, unless it knows of prepared statements; what it knows cannot be asked.
func notePooler(ctx context.Context, conn *pgx.Conn, log zerolog.Logger) error {
	if conn.Config().DefaultQueryExecMode != pgx.QueryExecModeCacheStatement {
		return nil // no statement outlives its transaction
	}
	var pid uint32
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid); err != nil {
		return fmt.Errorf("ask for the session's number: %w", err)
	}
	if pid != conn.PgConn().PID() {
		log.Warn().Msg("PostgreSQL is behind a pooler: unless that is PgBouncer 1.21 or newer with max_prepared_statements, or keeps a connection for every session, " +
			"add default_query_exec_mode=exec to MILLRACE_POSTGRES_URL")
	}
	return nil
}
