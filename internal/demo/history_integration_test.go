//go:build integration

package demo

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"millrace"
	"millrace/internal/embedded"
	"millrace/statestore"
)

func TestHistoryIsReadFromPostgreSQL(t *testing.T) {
	dir, err := embedded.OpenDir(embedded.DirConfig{})
	if err != nil {
		t.Fatal(err)
	}
	pg, err := embedded.StartPostgres(t.Context(), embedded.PostgresConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := statestore.Migrate(t.Context(), conn); err != nil {
		t.Fatal(err)
	}

	// One run's history and, under another prefix, an earlier one's.
	o := &outcome{sent: make(map[string][]sentTask), results: make(map[string]*taskResult)}
	for _, prefix := range []string{"demo-1-", "demo-2-"} {
		conversation := prefix + "c"
		exec(t, conn, `INSERT INTO millrace.conversations (id, length) VALUES ($1, 22)`, conversation)
		for turn := range 11 { // so that order by number and by text differ
			id, text := prefix+string(rune('a'+turn)), "say it"
			exec(t, conn, `INSERT INTO millrace.messages (conversation_id, seq, role, content, task_id, at)
				VALUES ($1, $2, 'user', $3, $4, now()), ($1, $2 + 1, 'assistant', 'yes', $4, now())`, conversation, 2*turn+1, []byte(text), id)
			exec(t, conn, `INSERT INTO millrace.completions (task_id, redrive, conversation_id, tenant, type, priority, status, attempts, commit_token, started_at, finished_at)
				VALUES ($1, 0, $2, '', 't', 'normal', 'completed', 1, gen_random_uuid(), now(), now())`, id, conversation)
			if prefix == "demo-2-" {
				o.sent[conversation] = append(o.sent[conversation], sentTask{id: id, text: text})
				o.results[id] = &taskResult{TaskResult: millrace.TaskResult{TaskID: id}, events: 1}
			}
		}
	}
	history := postgresHistory{url: pg.URL()}
	v, err := judge(t.Context(), "demo-2-", o.sent, o.results, history)
	if err != nil {
		t.Fatal(err)
	}
	if !v.Good() {
		t.Errorf("%s: %q", v, v.Findings)
	}
	exec(t, conn, `DELETE FROM millrace.messages WHERE conversation_id = 'demo-2-c' AND seq IN (4, 21, 22)`)
	if v, err = judge(t.Context(), "demo-2-", o.sent, o.results, history); err != nil || v.Lost != 2 {
		t.Errorf("%s, %v, want two lost", v, err)
	}
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}
