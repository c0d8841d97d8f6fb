//go:build integration

package integration

import (
	"fmt"
	"maps"
	"slices"

	"millrace"
)

// verdict counts what must not be. All zero is what Millrace promises.
type verdict struct {
	lost, duplicate, reordered int
	// findings says what, the first of them.
	findings []string
}

func (v *verdict) String() string {
	return fmt.Sprintf("lost=%d duplicate=%d reordered=%d", v.lost, v.duplicate, v.reordered)
}

func (v *verdict) find(count *int, format string, args ...any) {
	*count++
	if len(v.findings) < 20 {
		v.findings = append(v.findings, fmt.Sprintf(format, args...))
	}
}

// judge compares what was accepted with what has come out. Every task must have
// one result event and one completion, and its conversation one user message
// with one answer behind it. Tasks of one conversation and priority must stand in
// the order of sending; those of a higher priority may have overtaken others.
func judge(sent map[string][]sentTask, e evidence) *verdict {
	v := &verdict{}
	tasks := make(map[string]sentTask)
	for _, conversation := range slices.Sorted(maps.Keys(sent)) {
		for _, task := range sent[conversation] {
			if other, twice := tasks[task.id]; twice {
				v.find(&v.lost, "lost: the API gave the id of %s to %s as well", other.content, task.content)
			}
			tasks[task.id] = task
		}
	}
	v.judgeResults(tasks, e.results)
	v.judgeCompletions(tasks, e.completions)
	for _, conversation := range slices.Sorted(maps.Keys(e.messages)) {
		if _, known := sent[conversation]; !known {
			v.find(&v.duplicate, "duplicate: messages in conversation %q, which was not sent", conversation)
		}
	}
	order := make(map[string][]string)
	for _, r := range e.results {
		order[r.key] = append(order[r.key], r.result.TaskID)
	}
	for _, conversation := range slices.Sorted(maps.Keys(sent)) {
		turns := v.judgeHistory(sent[conversation], e.messages[conversation])
		if !slices.Equal(turns, order[conversation]) {
			v.find(&v.reordered, "reordered: results of %s were published as %v, its turns are %v", conversation, order[conversation], turns)
		}
		row := e.conversations[conversation]
		if n := int64(len(e.messages[conversation])); row.length != n || row.version != n/2 {
			v.find(&v.lost, "lost: %s is at version %d and length %d with %d messages", conversation, row.version, row.length, n)
		}
	}
	for _, text := range e.deadLetters {
		v.find(&v.lost, "lost: dead letter %s", text)
	}
	return v
}

func (v *verdict) judgeResults(tasks map[string]sentTask, results []resultEvent) {
	events := make(map[string]int)
	last := make(map[string]millrace.TaskResult) // of a conversation
	for _, r := range results {
		id := r.result.TaskID
		task, known := tasks[id]
		events[id]++
		switch {
		case !known:
			v.find(&v.duplicate, "duplicate: a result of task %s, which was not sent", id)
			continue
		case events[id] > 1:
			v.find(&v.duplicate, "duplicate: result %d of task %s (%s)", events[id], id, task.content)
			continue
		case r.id != id+".result" || r.key != task.conversation || r.result.Status != millrace.StatusCompleted:
			v.find(&v.lost, "lost: the result of %s is event %s under key %s: %+v", task.content, r.id, r.key, r.result)
		}
		if before := last[r.key]; r.result.StartedAt.Before(before.FinishedAt) {
			v.find(&v.reordered, "reordered: %s started at %s, the turn before it finished at %s",
				task.content, r.result.StartedAt, before.FinishedAt)
		}
		last[r.key] = r.result
	}
	for id, task := range tasks {
		if events[id] == 0 {
			v.find(&v.lost, "lost: task %s (%s) has no result", id, task.content)
		}
	}
}

func (v *verdict) judgeCompletions(tasks map[string]sentTask, completions []completion) {
	seen := make(map[string]int)
	for _, c := range completions {
		task, known := tasks[c.taskID]
		seen[c.taskID]++
		switch {
		case !known:
			v.find(&v.duplicate, "duplicate: a completion of task %s, which was not sent", c.taskID)
		case seen[c.taskID] > 1:
			v.find(&v.duplicate, "duplicate: completion %d of task %s (%s)", seen[c.taskID], c.taskID, task.content)
		case c.status != string(millrace.StatusCompleted) || c.conversation != task.conversation || c.redrive != 0:
			v.find(&v.lost, "lost: the completion of %s says %+v", task.content, c)
		}
	}
	for id, task := range tasks {
		if seen[id] == 0 {
			v.find(&v.lost, "lost: task %s (%s) has no completion", id, task.content)
		}
	}
}

// judgeHistory returns the tasks of a conversation in the order of its history.
func (v *verdict) judgeHistory(tasks []sentTask, history []message) (turns []string) {
	place := make(map[string]int)
	for i, task := range tasks {
		place[task.id] = i
	}
	questions, answers := make([]int, len(tasks)), make([]int, len(tasks))
	newest := make(map[string]int) // place, by priority, plus 1
	for i, m := range history {
		if m.seq != int64(i)+1 {
			v.find(&v.lost, "lost: message %d has sequence number %d", i+1, m.seq)
		}
		n, known := place[m.taskID]
		if !known {
			v.find(&v.duplicate, "duplicate: a message %q of task %s, which was not sent here", m.content, m.taskID)
			continue
		}
		task := tasks[n]
		if m.content != task.content {
			v.find(&v.lost, "lost: %s stands in the history as %q", task.content, m.content)
		}
		switch m.role {
		case millrace.RoleUser:
			turns = append(turns, m.taskID)
			if questions[n]++; questions[n] > 1 {
				v.find(&v.duplicate, "duplicate: %s stands in the history again", task.content)
			}
			if n+1 < newest[task.priority] {
				v.find(&v.reordered, "reordered: %s stands behind %s", task.content, tasks[newest[task.priority]-1].content)
			}
			newest[task.priority] = max(newest[task.priority], n+1)
		case millrace.RoleAssistant:
			if answers[n]++; answers[n] > 1 {
				v.find(&v.duplicate, "duplicate: %s is answered again", task.content)
			} else if i == 0 || history[i-1].taskID != m.taskID || history[i-1].role != millrace.RoleUser {
				v.find(&v.reordered, "reordered: the answer to %s does not follow it", task.content)
			}
		}
	}
	for n, task := range tasks {
		if questions[n] == 0 || answers[n] == 0 {
			v.find(&v.lost, "lost: %s has %d user messages and %d answers", task.content, questions[n], answers[n])
		}
	}
	return turns
}
