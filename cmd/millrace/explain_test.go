package main

import (
	"strings"
	"testing"
	"time"

	"millrace"
	"millrace/consumer"
	"millrace/internal/app"
	"millrace/statestore"
)

func TestExplainTellsPeopleWhatATaskWaitsFor(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	worker := &consumer.WorkerInfo{Incarnation: "i-1", Pool: "chat", Host: "h", Addr: "10.0.0.1:8081"}
	in := func(x consumer.Explanation) *app.TaskWhereabouts {
		x.TaskID = "t"
		return &app.TaskWhereabouts{TaskID: "t", Found: true, Worker: worker, Explanation: &x}
	}
	redriven := statestore.DeadLetter{RedrivenAs: 2, RedrivenAt: now}
	redriven.ID = 9
	tests := map[string]struct {
		w    *app.TaskWhereabouts
		want []string
	}{
		"running": {
			in(consumer.Explanation{State: consumer.Running, Attempt: 2, MaxAttempts: 5, StartedAt: now.Add(-3 * time.Second), TimesOutAt: now.Add(time.Minute)}),
			[]string{"running: attempt 2 of 5", "(3s ago)", "its time is up in 1m0s", "i-1 of pool chat on h, 10.0.0.1:8081"},
		},
		"slot": {
			in(consumer.Explanation{State: consumer.WaitingForSlot, ConversationsBefore: 7, Slots: 10, BusySlots: 9, ReservedSlots: 1}),
			[]string{"7 conversations of its priority come first", "9 of 10 busy, 1 free ones are kept for other priorities"},
		},
		"retry": {
			in(consumer.Explanation{State: consumer.WaitingForRetry, Attempt: 1, MaxAttempts: 5, RetryAt: now.Add(20 * time.Second), LastError: "no\x1b[31m luck"}),
			[]string{"next try in 20s", "1 of 5 have failed", "no\uFFFD[31m luck"},
		},
		"behind a retry": {
			in(consumer.Explanation{State: consumer.WaitingForConversation, TasksBefore: 3, RetryAt: now.Add(time.Second)}),
			[]string{"3 tasks come first, the first is tried again in 1s"},
		},
		"other pool": {
			in(consumer.Explanation{State: consumer.WaitingForPool, WaitsFor: "bulk/i-2/17"}),
			[]string{"pool bulk runs a turn of it (worker i-2, turn 17)"},
		},
		"other pool is next": {
			in(consumer.Explanation{State: consumer.WaitingForPool, WaitsFor: "bulk/i-2"}),
			[]string{"pool bulk is next (worker i-2)"},
		},
		"earlier owner": {
			in(consumer.Explanation{State: consumer.WaitingForOwner, WaitsFor: "i-3", WaitsSince: now.Add(-time.Second), Draining: true}),
			[]string{"since 1s ago", "worker i-3", "told to stop"},
		},
		"paused": {
			in(consumer.Explanation{State: consumer.Unread, ReadTo: 41, CommittedTo: 2, PausedBy: "offsets"}),
			[]string{"read up to offset 41, done below 2", "too far ahead"},
		},
		"nobody's": {
			&app.TaskWhereabouts{TaskID: "t", Found: true, Record: &app.RecordWhereabouts{Topic: "x", Partition: 3, Offset: 12, Before: 5}},
			[]string{"no worker has read it", "x, partition 3, offset 12: 5 records before it", "no live worker owns the partition"},
		},
		"held back": {
			&app.TaskWhereabouts{TaskID: "t", Found: true, HeldUntil: now.Add(time.Hour)},
			[]string{"held back until", "in 1h0m0s"},
		},
		"due and held back": {
			&app.TaskWhereabouts{TaskID: "t", Found: true, HeldUntil: now.Add(-time.Hour)},
			[]string{"due since", "millrace relay"},
		},
		"put back": {
			&app.TaskWhereabouts{TaskID: "t", Found: true, Result: &millrace.TaskResult{Status: millrace.StatusFailed, Attempts: 5, Error: "why"}, DeadLetter: &redriven},
			[]string{"failed at", "attempts 5", "why", "9, put back at", "as redrive 2, which has not completed yet"},
		},
		"unknown": {
			&app.TaskWhereabouts{
				TaskID: "t", Workers: 2, Search: &app.SearchedRecord{Searched: 5, Uncommitted: 9}, Accepted: true,
				Silent: []app.SilentWorker{{WorkerInfo: *worker, Error: "refused"}}, Problems: []string{"dead letters: out"},
			},
			[]string{"unknown", "2 live workers, 5 of 9 uncommitted records", "--max-records", "does not answer", "word was left", "never accepted", "refused", "dead letters: out"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := string(describeWhereabouts(tt.w, now))
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("want %q in:\n%s", want, got)
				}
			}
		})
	}
}

func TestExplainNeedsATask(t *testing.T) {
	for _, args := range [][]string{{"explain"}, {"explain", "a\x00b"}, {"explain", ""}, {"explain", "t", "--max-records", "-1"}} {
		if got := call(t, nil, "", args...); got.code != 2 {
			t.Errorf("%q: code %d, %s", args, got.code, got.err)
		}
	}
}

func TestExplainNamesTheServicesThatDoNotAnswer(t *testing.T) {
	got := call(t, []string{"MILLRACE_POSTGRES_URL=postgres://127.0.0.1:1/x", "MILLRACE_REDIS_URL=redis://127.0.0.1:1"}, "", "explain", "t", "--max-records", "0")
	if got.code != 1 || !strings.Contains(got.err, "task t was not found, but not everybody could be asked") {
		t.Errorf("code %d: %s", got.code, got.err)
	}
	for _, want := range []string{"not asked     completions", "not asked     workers in Redis", "the log was not searched", "known to a service that could not be asked"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s", want, got.out)
		}
	}
}
