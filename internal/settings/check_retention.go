package settings

import "time"

const (
	// leastCompletions: a record stays in Kafka for the retention of its topic and until
	// the segment that holds it has come to its end, 7 days each as a rule.
	leastCompletions = 14 * 24 * time.Hour
	leastRetention   = 24 * time.Hour
)

func (l *loader) checkRetention(s *Settings) {
	for _, of := range []struct {
		name        string
		keep, least time.Duration
		why         string
	}{
		{"RETENTION_COMPLETIONS", s.RetentionCompletions, leastCompletions, "a task whose record Kafka delivers again must find its completion"},
		{"RETENTION_CONVERSATIONS", s.RetentionConversations, leastRetention, "what is shorter is not idle"},
		{"RETENTION_DEAD_LETTERS", s.RetentionDeadLetters, leastRetention, "somebody has to look at them"},
	} {
		if of.keep > 0 && of.keep < of.least {
			l.problem(of.name, of.keep.String(), "want 0s, which keeps them for ever, or %v or more: %s", of.least, of.why)
		}
	}
	longest := s.HandlerTimeout
	for _, d := range s.TypeTimeouts {
		longest = max(longest, d)
	}
	if tried := time.Duration(s.MaxAttempts) * (longest + s.RetryMax); l.role.runs() && s.RetentionSteps > 0 && s.RetentionSteps < tried {
		l.problem("RETENTION_STEPS", s.RetentionSteps.String(), "a task may be tried for %v (attempts, the longest turn and the longest wait): want more, or steps are taken twice", tried)
	}
}
