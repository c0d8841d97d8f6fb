//go:build integration

package integration

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/kafka"
	"millrace/internal/settings"
	"millrace/internal/testenv"
)

// partitions of every priority topic.
const partitions = 12

var priorities = []string{"high", "normal", "batch"}

// services are where a pipeline keeps its things. What is empty comes from the
// servers that all tests share.
type services struct {
	kafka, redis, postgres string
	redisMode              string // single if empty
	prefix                 string // of topics, on the shared Kafka; one of its own if empty
}

// pipeline is an installation under test.
type pipeline struct {
	t        testing.TB
	brokers  []string
	postgres string
	prefix   string
	env      []string
	// api is the URL that clients send to; a scenario may move it.
	api atomic.Pointer[string]

	client *kgo.Client
	admin  *kadm.Client
}

// newPipeline prepares topics and schema with millrace's own commands. Nothing
// runs yet.
func newPipeline(t testing.TB, s services, env ...string) *pipeline {
	t.Helper()
	p := &pipeline{t: t, prefix: "scenario."}
	if s.kafka == "" {
		p.brokers, p.prefix = testenv.Kafka(t), s.prefix
		if s.prefix == "" {
			p.prefix = testenv.TopicPrefix(t)
		}
	} else {
		p.brokers = []string{s.kafka}
	}
	if s.redis == "" {
		s.redis = testenv.Redis(t)
	}
	if s.postgres == "" {
		s.postgres = testenv.Postgres(t)
	}
	p.postgres = s.postgres
	p.env = append([]string{
		"MILLRACE_KAFKA_BROKERS=" + strings.Join(p.brokers, ","),
		"MILLRACE_REDIS_URL=" + s.redis,
		"MILLRACE_REDIS_MODE=" + s.redisMode,
		"MILLRACE_POSTGRES_URL=" + p.postgres,
		"MILLRACE_TOPIC_PREFIX=" + p.prefix,
		fmt.Sprintf("MILLRACE_PARTITIONS=%d", partitions),
		"MILLRACE_HTTP_ADDR=127.0.0.1:0",
		"MILLRACE_LLM_PROXY_ADDR=off",
	}, env...)
	p.connect()
	p.command("migrate")
	p.command("topics")
	return p
}

// connect opens the checker's own client.
func (p *pipeline) connect() {
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...), kgo.ClientID("scenario"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(4<<20))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(client.Close)
	p.client, p.admin = client, kadm.NewClient(client)
}

// command runs one of millrace's commands to its end.
func (p *pipeline) command(args ...string) {
	p.t.Helper()
	c := launch(p.t, "millrace "+args[0], p.env, args...)
	if code := c.wait(startPatience); code != 0 {
		p.t.Fatalf("millrace %v ended with code %d", args, code)
	}
}

// start starts a process of this installation and waits until it is ready.
func (p *pipeline) start(role string, env ...string) *process {
	p.t.Helper()
	return p.launch(role, env...).ready()
}

func (p *pipeline) launch(role string, env ...string) *process {
	p.t.Helper()
	return launch(p.t, role, append(p.env[:len(p.env):len(p.env)], env...), role)
}

// startIngest starts an ingest that clients send to from now on.
func (p *pipeline) startIngest() *process {
	p.t.Helper()
	ingest := p.start("ingest")
	p.sendTo(ingest.url())
	return ingest
}

// startWorkers starts workers at once and waits until all are ready.
func (p *pipeline) startWorkers(n int) []*process {
	p.t.Helper()
	workers := make([]*process, n)
	for i := range workers {
		workers[i] = p.launch("worker")
	}
	for _, w := range workers {
		w.ready()
	}
	return workers
}

func (p *pipeline) sendTo(url string) { p.api.Store(&url) }

func (p *pipeline) topic(name string) string { return p.prefix + name }

func (p *pipeline) group() string { return p.prefix + "default" }

// query runs a statement on the pipeline's database and hands over each row.
func (p *pipeline) query(ctx context.Context, sql string, scan func(pgx.Rows) error, args ...any) error {
	conn, err := pgx.Connect(ctx, p.postgres)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (p *pipeline) count(ctx context.Context, table string) (n int, err error) {
	err = p.query(ctx, "SELECT count(*) FROM millrace."+pgx.Identifier{table}.Sanitize(),
		func(rows pgx.Rows) error { return rows.Scan(&n) })
	return n, err
}

// awaitCompletions waits until so many tasks are done.
func (p *pipeline) awaitCompletions(n int) {
	p.t.Helper()
	eventually(p.t, settlePatience, fmt.Sprintf("%d tasks are done", n), func() error {
		done, err := p.count(p.t.Context(), "completions")
		if err == nil && done < n {
			err = fmt.Errorf("%d are", done)
		}
		return err
	})
}

// lag returns how many records the workers have yet to commit.
func (p *pipeline) lag(ctx context.Context) (int64, error) {
	var topics []string
	for _, priority := range priorities {
		topics = append(topics, p.topic("tasks."+priority))
	}
	lag, err := kafka.TaskLag(ctx, p.admin, &settings.Settings{TopicPrefix: p.prefix, Pool: "default"}, topics...)
	if err != nil {
		return 0, err
	}
	total, known := lag.Total("")
	if !known {
		return 0, fmt.Errorf("the lag is not known: group %s is %s", lag.Group, cmp.Or(lag.State, "?"))
	}
	return total, nil
}

// partitionOf returns the partition of a conversation's tasks.
func partitionOf(conversation string) int32 {
	record := &kgo.Record{Key: []byte(conversation)}
	return int32(kgo.StickyKeyPartitioner(nil).ForTopic("tasks").Partition(record, partitions))
}
