package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// services says where Kafka is, and holds the environment in which a program
// finds all three.
type services struct {
	brokers string
	environ []string
}

// findServices takes the services of an installation, or else those that
// scripts/with-services has started.
func findServices(environ []string) (services, error) {
	set := make(map[string]string)
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && value != "" {
			set[name] = value
		}
	}
	var (
		s       = services{environ: environ}
		missing []string
	)
	for name, started := range map[string]string{
		"MILLRACE_KAFKA_BROKERS": "MILLRACE_TEST_KAFKA_BROKERS",
		"MILLRACE_REDIS_URL":     "MILLRACE_TEST_REDIS_URL",
		"MILLRACE_POSTGRES_URL":  "MILLRACE_TEST_POSTGRES_URL",
	} {
		value := set[name]
		if value == "" {
			value = set[started]
			s.environ = append(s.environ[:len(s.environ):len(s.environ)], name+"="+value)
		}
		if value == "" {
			missing = append(missing, name)
		}
		if name == "MILLRACE_KAFKA_BROKERS" {
			s.brokers = value
		}
	}
	if len(missing) > 0 {
		return s, fmt.Errorf("set %s, or call make bench-peers, which starts the services", strings.Join(missing, ", "))
	}
	return s, nil
}

// clean deletes the topics and groups that the comparison has left under a
// prefix.
func (s services) clean(ctx context.Context, prefix string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(s.brokers, ",")...))
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	defer client.Close()
	adm := kadm.NewClient(client)
	topics, err := adm.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	var mine []string
	for _, topic := range topics.Names() {
		if strings.HasPrefix(topic, prefix) {
			mine = append(mine, topic)
		}
	}
	if len(mine) > 0 {
		if _, err := adm.DeleteTopics(ctx, mine...); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	groups, err := adm.ListGroups(ctx)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	for _, group := range groups.Groups() {
		if strings.HasPrefix(group, prefix) {
			if _, err := adm.DeleteGroup(ctx, group); err != nil {
				// A peer that was ended hard is a member for a while yet.
				fmt.Fprintf(os.Stderr, "bench: group %s stays: %v\n", group, err)
			}
		}
	}
	return nil
}
