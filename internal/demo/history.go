package demo

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// message is a row of a conversation's history.
type message struct {
	conversation string
	role         string
	content      string
	taskID       string
}

// historyReader reads what a run has left in PostgreSQL.
type historyReader interface {
	// messages calls yield for every message of the conversations with this
	// prefix, by conversation and then as they stand.
	messages(ctx context.Context, prefix string, yield func(message)) error
	// completions calls yield for every completion of theirs.
	completions(ctx context.Context, prefix string, yield func(taskID, status, problem string)) error
}

// postgresHistory reads through a connection of its own.
type postgresHistory struct{ url string }

func (h postgresHistory) query(ctx context.Context, sql, prefix string, scan func(pgx.Rows) error) error {
	conn, err := pgx.Connect(ctx, h.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing to lose
	rows, err := conn.Query(ctx, sql, prefix)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (h postgresHistory) messages(ctx context.Context, prefix string, yield func(message)) error {
	const sql = `SELECT conversation_id, role, content, task_id FROM millrace.messages
		WHERE starts_with(conversation_id, $1) ORDER BY conversation_id, seq`
	err := h.query(ctx, sql, prefix, func(rows pgx.Rows) error {
		var m message
		var content []byte
		if err := rows.Scan(&m.conversation, &m.role, &content, &m.taskID); err != nil {
			return err
		}
		m.content = string(content)
		yield(m)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read messages: %w", err)
	}
	return nil
}

func (h postgresHistory) completions(ctx context.Context, prefix string, yield func(taskID, status, problem string)) error {
	const sql = `SELECT task_id, status, error FROM millrace.completions WHERE starts_with(conversation_id, $1)`
	err := h.query(ctx, sql, prefix, func(rows pgx.Rows) error {
		var taskID, status, problem string
		if err := rows.Scan(&taskID, &status, &problem); err != nil {
			return err
		}
		yield(taskID, status, problem)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read completions: %w", err)
	}
	return nil
}
