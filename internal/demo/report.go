package demo

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"millrace"
)

// Report is what a run came to.
type Report struct {
	Verdict

	// Conversations and Tasks are what was accepted.
	Conversations int
	Tasks         int
	// Refused are turns that the API would not take; FirstRefusal says why.
	Refused      int
	FirstRefusal string
	// BrokenLines of the input were passed over.
	BrokenLines int
	// Took is from the first request to the last result.
	Took time.Duration
	// Throttled counts the API's answers 429 and 503, all sent again.
	Throttled int64

	// Priorities are in the order of their topics' importance where it is known.
	Priorities []PriorityReport

	// Provider says who answered LLM calls; empty: nobody says.
	Provider string
	// Usage is summed over the results.
	Usage millrace.Usage
	// ProviderThrottled counts the provider's answers 429; negative: not asked.
	ProviderThrottled int64
	// Retried counts attempts beyond a task's first.
	Retried int64
	// Redelivered counts records that workers met again after their task was
	// complete; negative: not known.
	Redelivered int64
}

// PriorityReport is about the tasks of one priority.
type PriorityReport struct {
	Priority millrace.Priority
	Tasks    int
	// QueueWait is from acceptance to the start of the turn, Turn from there to its
	// end.
	QueueWait, Turn Quantiles
}

// Quantiles are exact, over all values.
type Quantiles struct{ P50, P99 time.Duration }

// OK reports whether nothing went wrong: the verdict is good, and all that was to
// be sent, which is something, was accepted.
func (r *Report) OK() bool { return len(r.Failures()) == 0 }

// Failures says what went wrong, in a few words each.
func (r *Report) Failures() []string {
	var all []string
	if r.Tasks == 0 {
		all = append(all, "no task was accepted, so nothing is shown")
	}
	if !r.Good() {
		all = append(all, r.String())
	}
	if r.Refused > 0 {
		all = append(all, fmt.Sprintf("turns that the API refused: %d", r.Refused))
	}
	if r.BrokenLines > 0 {
		all = append(all, fmt.Sprintf("broken lines of the input: %d", r.BrokenLines))
	}
	return all
}

// quantiles sorts values and picks by nearest rank.
func quantiles(values []time.Duration) Quantiles {
	if len(values) == 0 {
		return Quantiles{}
	}
	slices.Sort(values)
	rank := func(percent int) time.Duration { return values[(len(values)*percent+99)/100-1] }
	return Quantiles{P50: rank(50), P99: rank(99)}
}

// measure fills in what the results tell.
func (r *Report) measure(sent map[string][]sentTask, results map[string]*taskResult) {
	waits := make(map[millrace.Priority][]time.Duration)
	turns := make(map[millrace.Priority][]time.Duration)
	tasks := make(map[millrace.Priority]int)
	var first, last time.Time
	for _, list := range sent {
		r.Conversations++
		for _, t := range list {
			r.Tasks++
			tasks[t.priority]++
			if first.IsZero() || t.at.Before(first) {
				first = t.at
			}
			result := results[t.id]
			if result == nil {
				continue
			}
			r.Usage.Add(result.Usage)
			r.Retried += int64(max(result.Attempts-1, 0))
			if result.FinishedAt.After(last) {
				last = result.FinishedAt
			}
			if !result.StartedAt.IsZero() {
				waits[t.priority] = append(waits[t.priority], max(result.StartedAt.Sub(t.at), 0))
				turns[t.priority] = append(turns[t.priority], max(result.FinishedAt.Sub(result.StartedAt), 0))
			}
		}
	}
	if last.After(first) {
		r.Took = last.Sub(first)
	}
	for priority, n := range tasks {
		r.Priorities = append(r.Priorities, PriorityReport{
			Priority: priority, Tasks: n, QueueWait: quantiles(waits[priority]), Turn: quantiles(turns[priority]),
		})
	}
	order := millrace.DefaultPriorities()
	place := func(p millrace.Priority) int {
		if i := slices.Index(order, p); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortFunc(r.Priorities, func(a, b PriorityReport) int {
		return cmp.Or(place(a.Priority)-place(b.Priority), cmp.Compare(a.Priority, b.Priority))
	})
}

// Rate returns how many tasks were finished a second.
func (r *Report) Rate() float64 {
	if r.Took <= 0 {
		return 0
	}
	return float64(r.Tasks) / r.Took.Seconds()
}

// Print writes the summary. Its last line is the verdict, by itself.
func (r *Report) Print(w io.Writer) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"priority", "tasks", "queue wait p50", "p99", "turn p50", "p99"})
	right := func(n int) table.ColumnConfig { return table.ColumnConfig{Number: n, Align: text.AlignRight} }
	t.SetColumnConfigs([]table.ColumnConfig{right(2), right(3), right(4), right(5), right(6)})
	for _, p := range r.Priorities {
		t.AppendRow(table.Row{p.Priority, p.Tasks, short(p.QueueWait.P50), short(p.QueueWait.P99), short(p.Turn.P50), short(p.Turn.P99)})
	}
	known := func(n int64) string {
		if n < 0 {
			return "?"
		}
		return strconv.FormatInt(n, 10)
	}
	lines := []string{
		fmt.Sprintf("%d tasks of %d conversations in %s: %.0f tasks/s", r.Tasks, r.Conversations, short(r.Took), r.Rate()),
		t.Render(),
		fmt.Sprintf("LLM (%s) calls %d, tokens in %d, out %d, provider 429s %s", cmp.Or(r.Provider, "?"), r.Usage.Calls, r.Usage.InputTokens, r.Usage.OutputTokens, known(r.ProviderThrottled)),
		fmt.Sprintf("further attempts %d, redeliveries %s, 429s and 503s of the API %d", r.Retried, known(r.Redelivered), r.Throttled),
	}
	if r.Refused > 0 {
		lines = append(lines, fmt.Sprintf("refused by the API: %d, the first: %s", r.Refused, r.FirstRefusal))
	}
	if r.BrokenLines > 0 {
		lines = append(lines, fmt.Sprintf("broken lines of the input, passed over: %d", r.BrokenLines))
	}
	if r.Tasks == 0 {
		lines = append(lines, "no task was accepted: the line below shows nothing")
	}
	lines = append(lines, r.Findings...)
	lines = append(lines, r.String())
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return fmt.Errorf("print report: %w", err)
		}
	}
	return nil
}

// short gives a duration three digits or so.
func short(d time.Duration) string {
	switch {
	case d >= 100*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
