package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"millrace"
)

// Verdict counts what went wrong. All zero is what the pipeline promises.
type Verdict struct {
	Lost      int
	Duplicate int
	Reordered int
	// Findings says what, in words: the first few of them.
	Findings []string
}

// Good reports whether nothing went wrong.
func (v *Verdict) Good() bool { return v.Lost == 0 && v.Duplicate == 0 && v.Reordered == 0 }

func (v *Verdict) String() string {
	return fmt.Sprintf("lost=%d duplicate=%d reordered=%d", v.Lost, v.Duplicate, v.Reordered)
}

// maxFindings bounds the words; the numbers count everything.
const maxFindings = 20

func (v *Verdict) find(format string, args ...any) {
	if len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, fmt.Sprintf(format, args...))
	}
}

// judge compares what was accepted with what came out.
func judge(ctx context.Context, prefix string, sent map[string][]sentTask, results map[string]*taskResult, history historyReader) (*Verdict, error) {
	completed := make(map[string]bool)
	problems := make(map[string]string)
	err := history.completions(ctx, prefix, func(taskID, status, problem string) {
		completed[taskID] = true
		if status != string(millrace.StatusCompleted) {
			problems[taskID] = status + ": " + problem
		}
	})
	if err != nil {
		return nil, fmt.Errorf("judge: %w", err)
	}
	messages := make(map[string][]message)
	if err := history.messages(ctx, prefix, func(m message) {
		messages[m.conversation] = append(messages[m.conversation], m)
	}); err != nil {
		return nil, fmt.Errorf("judge: %w", err)
	}

	v := &Verdict{}
	known := make(map[string]bool)
	for _, conversation := range slices.Sorted(maps.Keys(sent)) {
		tasks := sent[conversation]
		missing := judgeHistory(v, conversation, tasks, messages[conversation])
		delete(messages, conversation)
		for _, t := range tasks {
			if known[t.id] {
				continue
			}
			known[t.id] = true
			r := results[t.id]
			switch {
			case r == nil:
				missing[t.id] = append(missing[t.id], "result event")
			case r.events > 1:
				v.Duplicate += r.events - 1
				v.find("duplicate: task %s of %s has %d result events", t.id, conversation, r.events)
			}
			if !completed[t.id] {
				missing[t.id] = append(missing[t.id], "completion")
			}
			if len(missing[t.id]) == 0 {
				continue
			}
			v.Lost++
			because := ""
			if p := problems[t.id]; p != "" {
				because = " (" + p + ")"
			}
			v.find("lost: task %s of %s has no %s%s", t.id, conversation, join(missing[t.id]), because)
		}
	}
	for conversation, extra := range messages {
		v.Duplicate += len(extra)
		v.find("duplicate: %d messages in conversation %s, which was not sent", len(extra), conversation)
	}
	for id, r := range results {
		if !known[id] {
			v.Duplicate += r.events
			v.find("duplicate: a result for task %s, which was not sent", id)
		}
	}
	return v, nil
}

// judgeHistory counts what is double or out of order in one conversation, and
// returns what its tasks lack.
func judgeHistory(v *Verdict, conversation string, tasks []sentTask, history []message) map[string][]string {
	place := make(map[string]int, len(tasks))
	for i, t := range tasks {
		if _, twice := place[t.id]; twice {
			v.Lost++
			v.find("lost: turn %d of %s was given task id %s, an earlier turn's", i, conversation, t.id)
			continue
		}
		place[t.id] = i
	}
	questions := make([]int, len(tasks))
	answers := make([]int, len(tasks))
	last := -1 // the question of the message before, if it is one
	newest := -1
	for _, m := range history {
		i, ours := place[m.taskID]
		switch {
		case !ours:
			v.Duplicate++
			v.find("duplicate: a message in %s of task %q, which was not sent", conversation, m.taskID)
			last = -1
		case m.role == millrace.RoleUser:
			if questions[i]++; questions[i] > 1 {
				v.Duplicate++
				v.find("duplicate: turn %d stands in %s again", i, conversation)
			} else if i < newest {
				v.Reordered++
				v.find("reordered: turn %d stands behind turn %d in %s", i, newest, conversation)
			}
			if !carries(m.content, tasks[i].text) {
				questions[i]-- // it is not what was sent
				v.find("lost: turn %d of %s does not carry its text", i, conversation)
			}
			newest, last = max(newest, i), i
		case m.role == millrace.RoleAssistant:
			if answers[i]++; answers[i] > 1 {
				v.Duplicate++
				v.find("duplicate: turn %d of %s is answered again", i, conversation)
			} else if last != i {
				v.Reordered++
				v.find("reordered: the answer to turn %d of %s does not follow it", i, conversation)
			}
			last = -1
		}
	}
	missing := make(map[string][]string)
	for i, t := range tasks {
		if place[t.id] != i {
			continue
		}
		if questions[i] == 0 {
			missing[t.id] = append(missing[t.id], "user message")
		}
		if answers[i] == 0 {
			missing[t.id] = append(missing[t.id], "answer")
		}
	}
	return missing
}

// carries reports whether a message holds what was said: the text as such or,
// from handlers that keep payloads as they are, the payload around it.
func carries(content, text string) bool {
	if content == text {
		return true
	}
	var p taskPayload
	return json.Unmarshal([]byte(content), &p) == nil && p.Text == text
}

func join(words []string) string {
	switch len(words) {
	case 1:
		return words[0]
	case 2:
		return words[0] + " and no " + words[1]
	}
	return words[0] + ", no " + join(words[1:])
}
