//go:build integration

package testenv_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newKafkaClient(t *testing.T, brokers []string, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(brokers...)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func createTopic(t *testing.T, brokers []string, topic string) {
	t.Helper()
	created, err := kadm.NewClient(newKafkaClient(t, brokers)).CreateTopics(t.Context(), 3, 1, nil, topic)
	if err == nil {
		err = created.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// transact produces one record in a transaction that ends as told.
func transact(t *testing.T, producer *kgo.Client, topic, value string, end kgo.TransactionEndTry) {
	t.Helper()
	if err := producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	record := &kgo.Record{Topic: topic, Key: []byte("c1"), Value: []byte(value)}
	if err := producer.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatalf("produce %s: %v", value, err)
	}
	if err := producer.EndTransaction(t.Context(), end); err != nil {
		t.Fatalf("end the transaction of %s: %v", value, err)
	}
}

// consume polls until it has so many records, and returns their values.
func consume(t *testing.T, consumer *kgo.Client, records int) (values []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(values) < records {
		fetches := consumer.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			t.Fatalf("%d of %d records: %v", len(values), records, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func TestKafkaTransactionsReachReadCommittedGroup(t *testing.T) {
	brokers, prefix := testenv.Kafka(t), testenv.TopicPrefix(t)
	topic := prefix + "tasks"
	createTopic(t, brokers, topic)

	producer := newKafkaClient(t, brokers, kgo.TransactionalID(prefix+"producer"))
	transact(t, producer, topic, "first", kgo.TryCommit)
	transact(t, producer, topic, "aborted", kgo.TryAbort)
	transact(t, producer, topic, "second", kgo.TryCommit)

	consumer := newKafkaClient(t, brokers, kgo.ConsumerGroup(prefix+"group"), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if got := strings.Join(consume(t, consumer, 2), " "); got != "first second" {
		t.Errorf("read %q", got)
	}
	if err := consumer.CommitUncommittedOffsets(t.Context()); err != nil {
		t.Errorf("commit: %v", err)
	}
}

func TestTopicPrefixTakesItsTopicsAlong(t *testing.T) {
	brokers := testenv.Kafka(t)
	var topic string
	t.Run("user", func(t *testing.T) {
		topic = testenv.TopicPrefix(t) + "tasks"
		createTopic(t, brokers, topic)
	})
	topics, err := kadm.NewClient(newKafkaClient(t, brokers)).ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if topics.Has(topic) {
		t.Errorf("topic %s outlived its test", topic)
	}
}

func TestRedisDatabasesAreSeparateAndEmpty(t *testing.T) {
	open := func(t *testing.T) *redis.Client {
		t.Helper()
		options, err := redis.ParseURL(testenv.Redis(t))
		if err != nil {
			t.Fatal(err)
		}
		client := redis.NewClient(options)
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
	one, two := open(t), open(t)
	if err := one.Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := one.Get(t.Context(), "key").Result(); err != nil || got != "value" {
		t.Errorf("GET in the same database: %q, %v", got, err)
	}
	if err := two.Get(t.Context(), "key").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("GET in the other database: %v", err)
	}
}

func TestPostgresDatabaseLivesAsLongAsItsTest(t *testing.T) {
	connect := func(t *testing.T) *pgx.Conn {
		t.Helper()
		connection, err := pgx.Connect(t.Context(), testenv.Postgres(t))
		if err != nil {
			t.Fatal(err)
		}
		return connection
	}
	var name string
	t.Run("user", func(t *testing.T) {
		connection := connect(t)
		defer func() { _ = connection.Close(t.Context()) }()
		if err := connection.QueryRow(t.Context(), "SELECT current_database()").Scan(&name); err != nil {
			t.Fatal(err)
		}
		if _, err := connection.Exec(t.Context(), "CREATE TABLE t (id int)"); err != nil {
			t.Error(err)
		}
	})
	connection := connect(t)
	defer func() { _ = connection.Close(t.Context()) }()
	var count int
	if err := connection.QueryRow(t.Context(), "SELECT count(*) FROM pg_database WHERE datname = $1", name).Scan(&count); err != nil {
		t.Fatal(err)
	}
	if count != 0 {
		t.Errorf("database %s outlived its test", name)
	}
}

func TestKafkaKeepsRecordsAndAddressThroughOutages(t *testing.T) {
	server := testenv.StartKafka(t, map[string]string{"KAFKA_LOG_RETENTION_HOURS": "1"})
	brokers := []string{server.URL}
	createTopic(t, brokers, "tasks")
	producer := newKafkaClient(t, brokers, kgo.DefaultProduceTopic("tasks"), kgo.MetadataMinAge(100*time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond }))

	outages := []struct {
		name     string
		down, up func(context.Context) error
	}{
		{"stop", server.Stop, server.Start},
		{"kill", server.Kill, server.Start},
		{"pause", server.Pause, server.Unpause},
	}
	for _, outage := range outages {
		if err := outage.down(t.Context()); err != nil {
			t.Fatalf("%s: %v", outage.name, err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := newKafkaClient(t, brokers, kgo.RequestTimeoutOverhead(time.Second)).Ping(short); err == nil {
			t.Errorf("%s: the broker answers", outage.name)
		}
		cancel()
		// Buffered during the outage and delivered after it.
		delivered := make(chan error, 1)
		producer.Produce(t.Context(), kgo.StringRecord(outage.name), func(_ *kgo.Record, err error) { delivered <- err })
		if err := outage.up(t.Context()); err != nil {
			t.Fatalf("end of %s: %v", outage.name, err)
		}
		if err := <-delivered; err != nil {
			t.Errorf("produce over %s: %v", outage.name, err)
		}
	}
	consumer := newKafkaClient(t, brokers, kgo.ConsumeTopics("tasks"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	seen := map[string]bool{}
	for _, value := range consume(t, consumer, len(outages)) {
		seen[value] = true
	}
	for _, outage := range outages {
		if !seen[outage.name] {
			t.Errorf("the record of %s is lost", outage.name)
		}
	}
}

func TestRedisAndPostgresComeBackAtTheSameAddress(t *testing.T) {
	var start sync.WaitGroup
	var cache, database *testenv.Server
	start.Go(func() { cache = testenv.StartRedis(t, "--appendonly", "yes") })
	start.Go(func() { database = testenv.StartPostgres(t, "-c", "fsync=on") })
	start.Wait()

	client := redis.NewClient(&redis.Options{Addr: cache.Address})
	defer func() { _ = client.Close() }()
	if err := client.Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	inDatabase := func(do func(*pgx.Conn) error) {
		t.Helper()
		connection, err := pgx.Connect(t.Context(), database.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = connection.Close(t.Context()) }()
		if err := do(connection); err != nil {
			t.Fatal(err)
		}
	}
	inDatabase(func(c *pgx.Conn) error {
		_, err := c.Exec(t.Context(), "CREATE TABLE t AS SELECT 42 AS answer")
		return err
	})

	for _, server := range []*testenv.Server{cache, database} {
		for _, down := range []func(context.Context) error{server.Stop, server.Kill} {
			if err := down(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := server.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}

	if got, err := client.Get(t.Context(), "key").Result(); err != nil || got != "value" {
		t.Errorf("GET after the outages: %q, %v", got, err)
	}
	inDatabase(func(c *pgx.Conn) error {
		var answer int
		err := c.QueryRow(t.Context(), "SELECT answer FROM t").Scan(&answer)
		if err == nil && answer != 42 {
			err = fmt.Errorf("answer %d", answer)
		}
		return err
	})
}
