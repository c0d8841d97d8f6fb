package testenv

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Kafka returns the brokers that the test binary shares. The test keeps to topics and groups under its own TopicPrefix.
func Kafka(t testing.TB) (brokers []string) {
	t.Helper()
	if set := os.Getenv("MILLRACE_TEST_KAFKA_BROKERS"); set != "" {
		return strings.Split(set, ",")
	}
	return []string{shared.kafka.url(t)}
}

// TopicPrefix returns a prefix for the test's topics and groups that no other test has, like "testreplay-3f2a9c01d4e7." It deletes
// the topics that bear it when the test ends.
func TopicPrefix(t testing.TB) string {
	t.Helper()
	prefix := uniqueName(t, "-", 60) + "."
	brokers := Kafka(t)
	t.Cleanup(func() {
		if err := deleteTopics(context.WithoutCancel(t.Context()), brokers, prefix); err != nil {
			t.Errorf("delete the topics under %s: %v", prefix, err)
		}
	})
	return prefix
}

func deleteTopics(ctx context.Context, brokers []string, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	kafka, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer kafka.Close()
	admin := kadm.NewClient(kafka)
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	var mine []string
	for _, topic := range topics.Names() {
		if strings.HasPrefix(topic, prefix) {
			mine = append(mine, topic)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	deleted, err := admin.DeleteTopics(ctx, mine...)
	if err != nil {
		return err
	}
	return deleted.Error()
}

// StartKafka starts a broker for this test alone. The settings, by their names in the apache/kafka image (KAFKA_…), override the
// defaults.
func StartKafka(t testing.TB, settings map[string]string) *Server {
	t.Helper()
	return dedicated(t, kafkaSpec(settings))
}

// kafkaSpec is a broker that is its own controller. It listens on the same port inside the container as outside, because that
// is the one it advertises and it talks to itself there.
func kafkaSpec(settings map[string]string) spec {
	env := map[string]string{
		"KAFKA_NODE_ID":                                  "1",
		"KAFKA_PROCESS_ROLES":                            "broker,controller",
		"KAFKA_CONTROLLER_LISTENER_NAMES":                "CONTROLLER",
		"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":           "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"KAFKA_INTER_BROKER_LISTENER_NAME":               "PLAINTEXT",
		"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":         "1",
		"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
		"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":            "1",
		// Fewer partitions of the internal topics: the defaults of 50 cost seconds on the first commit.
		"KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS":         "4",
		"KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
		// A group's first member need not wait for others.
		"KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
		// As on a cluster with care for its topics: what a test needs it creates.
		"KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
		// A killed broker may register again only when the session of the one before is over: 9 s by default.
		"KAFKA_BROKER_SESSION_TIMEOUT_MS":    "2000",
		"KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "400",
		"KAFKA_HEAP_OPTS":                    "-Xms256m -Xmx512m",
	}
	// The image's own options are for a broker that starts fast, not for one that is measured.
	if options := os.Getenv("MILLRACE_TEST_KAFKA_JVM"); options != "" {
		env["KAFKA_JVM_PERFORMANCE_OPTS"] = options
		env["KAFKA_HEAP_OPTS"] = "-Xms1g -Xmx1g"
	}
	maps.Copy(env, settings)
	return spec{
		image: kafkaImage,
		env:   env,
		configure: func(s *spec, server *Server) {
			server.URL = server.Address
			listen, controller := "", 9093
			if s.onHost {
				listen, controller = "127.0.0.1", s.spare
			}
			s.env["KAFKA_LISTENERS"] = fmt.Sprintf("PLAINTEXT://%s:%s,CONTROLLER://%s:%d", listen, s.port, listen, controller)
			s.env["KAFKA_CONTROLLER_QUORUM_VOTERS"] = fmt.Sprintf("1@127.0.0.1:%d", controller)
			s.env["KAFKA_ADVERTISED_LISTENERS"] = "PLAINTEXT://" + server.Address
		},
		ping: pingKafka,
	}
}

// pingKafka succeeds once the broker has registered with its controller, which is later than it first answers.
func pingKafka(ctx context.Context, server *Server) error {
	kafka, err := kgo.NewClient(kgo.SeedBrokers(server.Address))
	if err != nil {
		return err
	}
	defer kafka.Close()
	brokers, err := kadm.NewClient(kafka).ListBrokers(ctx)
	if err != nil {
		return err
	}
	if len(brokers) == 0 {
		return fmt.Errorf("no broker is registered on %s", server.Address)
	}
	return nil
}
