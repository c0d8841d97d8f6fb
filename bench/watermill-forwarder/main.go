// Command watermill-forwarder measures Watermill's forwarder between PostgreSQL and
// Kafka: it fills the table that the forwarder reads, runs it, and prints
// {"rate": events a second} from the first event that Kafka has acknowledged to
// the last.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-kafka/v3/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	batch     = 100
	keys      = 10_000
	valueSize = 512
)

type options struct {
	brokers, postgres, topic string
	records                  int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o := options{postgres: os.Getenv("MILLRACE_POSTGRES_URL")}
	flag.StringVar(&o.brokers, "brokers", "", "Kafka brokers")
	flag.StringVar(&o.topic, "topic", "", "Kafka topic, which exists")
	flag.IntVar(&o.records, "records", 20_000, "events")
	flag.Parse()
	rate, err := run(ctx, o)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(map[string]float64{"rate": rate})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "watermill-forwarder:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (rate float64, err error) {
	pool, err := pgxpool.New(ctx, o.postgres)
	if err != nil {
		return 0, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer pool.Close()
	var (
		logger = watermill.NopLogger{}
		queue  = "bench_" + strconv.FormatUint(rand.Uint64(), 36)
		schema = sql.DefaultPostgreSQLSchema{SubscribeBatchSize: batch}
	)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		for _, table := range []string{"watermill_" + queue, "watermill_offsets_" + queue} {
			_, dropErr := pool.Exec(ctx, "DROP TABLE IF EXISTS "+pgx.Identifier{table}.Sanitize())
			err = errors.Join(err, dropErr)
		}
	}()
	if err := fill(ctx, pool, schema, queue, o); err != nil {
		return 0, err
	}
	subscriber, err := sql.NewSubscriber(sql.BeginnerFromPgx(pool), sql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: sql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true,
	}, logger)
	if err != nil {
		return 0, err
	}
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{
		Brokers:   strings.Split(o.brokers, ","),
		Marshaler: kafka.NewWithPartitioningMarshaler(func(_ string, m *message.Message) (string, error) { return m.Metadata.Get("key"), nil }),
	}, logger)
	if err != nil {
		return 0, err
	}
	counted := &counter{Publisher: publisher, want: o.records, all: make(chan struct{})}
	f, err := forwarder.NewForwarder(subscriber, counted, logger, forwarder.Config{ForwarderTopic: queue})
	if err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	select {
	case <-counted.all:
	case err := <-ended:
		return 0, errors.Join(errors.New("the forwarder ended before the measurement"), err)
	}
	err = errors.Join(f.Close(), <-ended)
	return float64(o.records) / counted.last.Sub(counted.first).Seconds(), err
}

// fill writes the events as the forwarder's publisher does, many in a transaction.
func fill(ctx context.Context, pool *pgxpool.Pool, schema sql.DefaultPostgreSQLSchema, queue string, o options) error {
	random := rand.NewChaCha8([32]byte{})
	config := sql.PublisherConfig{SchemaAdapter: schema, AutoInitializeSchema: true}
	out, err := sql.NewPublisher(sql.BeginnerFromPgx(pool), config, watermill.NopLogger{})
	if err != nil {
		return err
	}
	enveloped := forwarder.NewPublisher(out, forwarder.PublisherConfig{ForwarderTopic: queue})
	for from := 0; from < o.records; from += batch {
		messages := make([]*message.Message, min(batch, o.records-from))
		for i := range messages {
			value := make([]byte, valueSize)
			_, _ = random.Read(value)
			messages[i] = message.NewMessage(watermill.NewUUID(), value)
			messages[i].Metadata.Set("key", "c"+strconv.Itoa((from+i)%keys))
		}
		if err := enveloped.Publish(o.topic, messages...); err != nil {
			return fmt.Errorf("fill the outbox: %w", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// counter notes when the first and the last event are published.
type counter struct {
	message.Publisher
	want int
	all  chan struct{}

	mu          sync.Mutex
	n           int
	first, last time.Time
}

func (c *counter) Publish(topic string, messages ...*message.Message) error {
	if err := c.Publisher.Publish(topic, messages...); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		c.first = time.Now()
	}
	if c.n += len(messages); c.n == c.want {
		c.last = time.Now()
		close(c.all)
	}
	return nil
}
