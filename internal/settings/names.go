package settings

import (
	"strings"

	"millrace"
)

// TaskTopic returns the topic of a priority's tasks.
func (s *Settings) TaskTopic(p millrace.Priority) string { return s.TopicPrefix + "tasks." + string(p) }

// TaskTopics returns the topics of all priorities, in their order.
func (s *Settings) TaskTopics() []string {
	topics := make([]string, len(s.Priorities))
	for i, p := range s.Priorities {
		topics[i] = s.TaskTopic(p)
	}
	return topics
}

// ResultsTopic returns the topic of result events.
func (s *Settings) ResultsTopic() string { return s.TopicPrefix + "results" }

// DeadLetterTopic returns the topic of dead letters.
func (s *Settings) DeadLetterTopic() string { return s.TopicPrefix + "dlq" }

// MarkerTopic returns the compacted topic that the relay notes its progress in.
func (s *Settings) MarkerTopic() string { return s.TopicPrefix + "relay.markers" }

// Group returns the consumer group of the pool.
func (s *Settings) Group() string { return s.TopicPrefix + s.Pool }

// RedisPrefix returns what stands before the Redis keys of an installation: two of
// them may share a Redis. Limits are not among them, since they are the provider
// account's.
func (s *Settings) RedisPrefix() string { return strings.TrimSuffix(s.TopicPrefix, ".") + ":" }
