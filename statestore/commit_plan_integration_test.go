//go:build integration

package statestore

import (
	"strings"
	"testing"

	"millrace"
)

// TestEffectsAreWrittenWithoutComparingAllWithAll reads the plan that a connection
// settles on, which is made for arrays of unknown length: the planner expects few
// rows, for which comparing each with each would do.
func TestEffectsAreWrittenWithoutComparingAllWithAll(t *testing.T) {
	pool := newDatabase(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	nulls := strings.TrimSuffix(strings.Repeat("NULL, ", strings.Count(writeEffectsSQL, "[]")+1), ", ")
	for _, sql := range []string{indexPlansSQL, `SET LOCAL plan_cache_mode = force_generic_plan`, `PREPARE effects (uuid) AS ` + writeEffectsSQL} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := tx.Query(t.Context(), `EXPLAIN EXECUTE effects (`+nulls+`)`)
	if err != nil {
		t.Fatal(err)
	}
	var (
		plan strings.Builder
		line string
	)
	for rows.Next() {
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		plan.WriteString(line + "\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if text := plan.String(); strings.Contains(text, "Join Filter") || strings.Contains(text, "Seq Scan") || !strings.Contains(text, "hashed SubPlan") {
		t.Errorf("the plan compares rows one by one:\n%s", text)
	}
}

// TestATurnOnAConversationThatIsGoneConflicts and does not make it anew: what the
// turn has read is no more.
func TestATurnOnAConversationThatIsGoneConflicts(t *testing.T) {
	s := newStore(t)
	mustCommit(t, s, completion("task", millrace.Conversation{ID: "gone", Version: 3, Length: 9}), millrace.Conflict)
	if n := count(t, s.cfg.Pool, `SELECT count(*) FROM millrace.conversations`); n != 0 {
		t.Errorf("%d conversations, want none", n)
	}
	task := millrace.Task{ID: "task", Conversation: "gone"}
	conv, err := s.Reload(t.Context(), &task)
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, s, completion("task", conv), millrace.Committed)
}
