// Command results prints the outcome of every task as it comes in.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	brokers := strings.Split(cmp.Or(os.Getenv("MILLRACE_KAFKA_BROKERS"), "localhost:9092"), ",")
	err := consume(ctx, brokers, func(r *millrace.TaskResult) error {
		_, err := fmt.Println(r.TaskID, r.ConversationID, r.Status, r.Attempts, string(r.Result), r.Error)
		return err
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "results:", err)
		os.Exit(1)
	}
}

//snippet:consume

// consume calls handle for every finished task, in the order of each
// conversation. What was handled before a crash may come again; the task's id
// tells.
func consume(ctx context.Context, brokers []string, handle func(*millrace.TaskResult) error) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ConsumerGroup("crm"),
		kgo.ConsumeTopics("millrace.results"),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // sees each result once, however often the relay had to try
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return err
		}
		for record := range fetches.RecordsAll() {
			if !isResult(record) {
				continue // an event of a handler's own
			}
			var result millrace.TaskResult
			if err := json.Unmarshal(record.Value, &result); err != nil {
				return err
			}
			if err := handle(&result); err != nil {
				return err
			}
		}
		if err := client.CommitUncommittedOffsets(ctx); err != nil {
			return err
		}
		client.AllowRebalance()
	}
}

func isResult(record *kgo.Record) bool {
	for _, h := range record.Headers {
		if h.Key == "ce_type" {
			return strings.HasPrefix(string(h.Value), "task.") // completed, failed or cancelled
		}
	}
	return false
}

//snippet:end
