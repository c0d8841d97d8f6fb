package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"millrace/internal/settings"
	"millrace/outbox"
)

// Topic is what a topic must be like.
type Topic struct {
	Name       string
	Partitions int
	// Exact: more partitions than wanted are as wrong as fewer, because the number
	// decides which records share a partition.
	Exact bool
	// Compacted topics keep the newest record of each key, others all records for
	// the time of Retention.
	Compacted bool
	Retention time.Duration
	// Outlived is what records must be gone by, if that is bounded: when the completions
	// of their tasks are deleted.
	Outlived time.Duration
}

const (
	// A task that nobody has taken within this time is deleted by Kafka.
	taskRetention = 7 * 24 * time.Hour
	// People look at dead letters later than machines look at results.
	deadLetterRetention = 30 * 24 * time.Hour
)

// Topics returns the topics of an installation.
func Topics(s *settings.Settings) []Topic {
	var all []Topic
	for _, name := range s.TaskTopics() {
		all = append(all, Topic{Name: name, Partitions: s.Partitions, Exact: true, Retention: taskRetention, Outlived: s.RetentionCompletions})
	}
	return append(all,
		Topic{Name: s.ResultsTopic(), Partitions: s.Partitions, Retention: taskRetention},
		Topic{Name: s.DeadLetterTopic(), Partitions: min(s.Partitions, 12), Retention: deadLetterRetention},
		Topic{Name: s.MarkerTopic(), Partitions: outbox.Shards, Exact: true, Compacted: true},
	)
}

// Change is something that was done to a topic, or in a dry run would be.
type Change struct {
	Topic string
	// What says it for people. Empty: the topic was right as it was.
	What string
}

// CheckTopics reports everything about existing topics that would lose, mix up
// or refuse records, and every topic that is missing.
func CheckTopics(ctx context.Context, adm *kadm.Client, topics []Topic) error {
	found, err := inspect(ctx, adm, topics)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range topics {
		if _, ok := found.topics[t.Name]; !ok {
			errs = append(errs, fmt.Errorf("topic %s is missing: create it with millrace topics", t.Name))
		}
	}
	errs = append(errs, found.wrong...)
	return errors.Join(errs...)
}

// EnsureTopics creates the topics that are missing and says what it did with
// each. It changes no topic that exists: when one is wrong, it creates nothing
// and reports all that is wrong. A dry run asks Kafka whether it would create
// them.
func EnsureTopics(ctx context.Context, adm *kadm.Client, topics []Topic, dryRun bool) ([]Change, error) {
	found, err := inspect(ctx, adm, topics)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(found.wrong...); err != nil {
		return nil, err
	}
	create := adm.CreateTopics
	if dryRun {
		create = adm.ValidateCreateTopics
	}
	replication := min(3, found.brokers)
	var (
		changes []Change
		errs    []error
	)
	for _, t := range topics {
		if _, ok := found.topics[t.Name]; ok {
			changes = append(changes, Change{Topic: t.Name})
			continue
		}
		replies, err := create(ctx, int32(t.Partitions), int16(replication), t.config(replication), t.Name) //nolint:gosec // at most 10,000 and 3
		if err != nil {
			return changes, fmt.Errorf("create topic %s: %w", t.Name, err)
		}
		reply := replies[t.Name]
		// Another process may create the same topics at the same time.
		if errors.Is(reply.Err, kerr.TopicAlreadyExists) {
			changes = append(changes, Change{Topic: t.Name})
			continue
		}
		if reply.Err != nil {
			errs = append(errs, fmt.Errorf("create topic %s: %w", t.Name, withMessage(reply.Err, reply.ErrMessage)))
			continue
		}
		changes = append(changes, Change{Topic: t.Name, What: fmt.Sprintf("%d partitions, replication %d", t.Partitions, replication)})
	}
	if err := errors.Join(errs...); err != nil || dryRun {
		return changes, err
	}
	return changes, awaitLeaders(ctx, adm, topics)
}

// awaitLeaders returns once every partition has a leader: a broker says that it
// has created a topic before all of them know it.
func awaitLeaders(ctx context.Context, adm *kadm.Client, topics []Topic) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		meta, err := adm.Metadata(kadm.WithAuthorizedOps(ctx), names(topics)...)
		if err == nil && !slices.ContainsFunc(topics, func(t Topic) bool { return leaderless(meta.Topics[t.Name]) }) {
			return nil
		}
		again := time.NewTimer(100 * time.Millisecond)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return errors.Join(errors.New("not every partition has got a leader"), ctx.Err(), err)
		}
	}
}

func leaderless(t kadm.TopicDetail) bool {
	for _, p := range t.Partitions {
		if p.Err != nil || p.Leader < 0 {
			return true
		}
	}
	return t.Err != nil || len(t.Partitions) == 0
}

func names(topics []Topic) []string {
	all := make([]string, len(topics))
	for i, t := range topics {
		all[i] = t.Name
	}
	return all
}

func (t Topic) config(replication int) map[string]*string {
	config := map[string]*string{
		"max.message.bytes":              kadm.StringPtr(strconv.Itoa(MaxMessageBytes)),
		"min.insync.replicas":            kadm.StringPtr(strconv.Itoa(max(1, replication-1))),
		"unclean.leader.election.enable": kadm.StringPtr("false"),
	}
	if t.Compacted {
		config["cleanup.policy"] = kadm.StringPtr("compact")
		return config
	}
	config["cleanup.policy"] = kadm.StringPtr("delete")
	config["retention.ms"] = kadm.StringPtr(strconv.FormatInt(t.Retention.Milliseconds(), 10))
	config["retention.bytes"] = kadm.StringPtr("-1")
	return config
}

// inspected is what there is of the wanted topics.
type inspected struct {
	brokers int
	topics  map[string]kadm.TopicDetail
	wrong   []error
}

func inspect(ctx context.Context, adm *kadm.Client, topics []Topic) (inspected, error) {
	// Asking for operations passes by the client's cache, which for a while goes on
	// saying that a new topic is missing.
	meta, err := adm.Metadata(kadm.WithAuthorizedOps(ctx), names(topics)...)
	if err != nil {
		return inspected{}, fmt.Errorf("list topics: %w", err)
	}
	found := inspected{brokers: len(meta.Brokers), topics: make(map[string]kadm.TopicDetail)}
	for _, t := range topics {
		detail, ok := meta.Topics[t.Name]
		switch {
		case !ok || errors.Is(detail.Err, kerr.UnknownTopicOrPartition):
		case detail.Err != nil:
			return inspected{}, fmt.Errorf("look at topic %s: %w", t.Name, detail.Err)
		default:
			found.topics[t.Name] = detail
		}
	}
	if len(found.topics) == 0 {
		return found, nil
	}
	configs, err := adm.DescribeTopicConfigs(ctx, slices.Sorted(maps.Keys(found.topics))...)
	// A worker need not be allowed to look at them; partitions count all the same.
	forbidden := false
	if refused := (*kadm.AuthError)(nil); errors.As(err, &refused) {
		forbidden = true
	} else if err != nil {
		return inspected{}, fmt.Errorf("read topic settings: %w", err)
	}
	for _, t := range topics {
		detail, ok := found.topics[t.Name]
		if !ok {
			continue
		}
		resource, err := configs.On(t.Name, nil)
		if err = errors.Join(err, resource.Err); err != nil && !forbidden {
			return inspected{}, fmt.Errorf("read settings of topic %s: %w", t.Name, err)
		}
		found.wrong = append(found.wrong, t.judge(detail, resource.Configs)...)
	}
	return found, nil
}

// judge returns what is wrong with an existing topic.
func (t Topic) judge(detail kadm.TopicDetail, configs []kadm.Config) (wrong []error) {
	have := len(detail.Partitions)
	switch {
	case t.Exact && have != t.Partitions && t.Compacted:
		wrong = append(wrong, fmt.Errorf("topic %s has %d partitions, want %d, one for each shard of the outbox: "+
			"stop all relays, delete the topic and run millrace topics again", t.Name, have, t.Partitions))
	case t.Exact && have != t.Partitions:
		wrong = append(wrong, fmt.Errorf("topic %s has %d partitions, MILLRACE_PARTITIONS is %d: "+
			"set MILLRACE_PARTITIONS=%d; partitions are never added in place, because conversations would change theirs and lose their order; "+
			"for another number take new topics, under another MILLRACE_TOPIC_PREFIX", t.Name, have, t.Partitions, have))
	}
	if stays, longer := t.staysLonger(configs); longer {
		wrong = append(wrong, fmt.Errorf("records stay in topic %s for up to %v (retention.ms and segment.ms), and MILLRACE_RETENTION_COMPLETIONS is %v: "+
			"a task that is delivered again after that would run again; set it to more, or to 0s", t.Name, stays, t.Outlived))
	}
	for _, config := range configs {
		value := config.MaybeValue()
		switch config.Key {
		case "cleanup.policy":
			if !t.Compacted && value != "delete" {
				wrong = append(wrong, fmt.Errorf("topic %s has cleanup.policy=%s, which deletes all but the newest record of a conversation: set it to delete", t.Name, value))
			}
			if t.Compacted && value != "compact" {
				wrong = append(wrong, fmt.Errorf("topic %s has cleanup.policy=%s, which deletes markers that are still needed: set it to compact", t.Name, value))
			}
		case "max.message.bytes":
			if n, err := strconv.Atoi(value); err == nil && n < MaxMessageBytes {
				wrong = append(wrong, fmt.Errorf("topic %s has max.message.bytes=%d, and would refuse records that Millrace accepts: set it to %d or more", t.Name, n, MaxMessageBytes))
			}
		}
	}
	return wrong
}

// staysLonger reports whether records stay in the topic for longer than they may,
// and for how long: Kafka deletes a segment when the retention of its last record is
// over, and begins the next after segment.ms.
func (t Topic) staysLonger(configs []kadm.Config) (time.Duration, bool) {
	if t.Outlived == 0 {
		return 0, false
	}
	var stays time.Duration
	for _, config := range configs {
		if config.Key != "retention.ms" && config.Key != "segment.ms" {
			continue
		}
		ms, err := strconv.ParseInt(config.MaybeValue(), 10, 64)
		if err != nil {
			continue
		}
		if ms < 0 || ms > math.MaxInt64/4/int64(time.Millisecond) {
			return math.MaxInt64, true // for ever
		}
		stays += time.Duration(ms) * time.Millisecond
	}
	return stays, stays > t.Outlived
}

func withMessage(err error, message string) error {
	if message == "" {
		return err
	}
	return fmt.Errorf("%w (%s)", err, message)
}
