package statestore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

var (
	//go:embed sql/retain_look.sql
	retainLookSQL string
	//go:embed sql/retain_pages.sql
	retainPagesSQL string
	//go:embed sql/retain_save.sql
	retainSaveSQL string
	//go:embed sql/retain_completions.sql
	retainCompletionsSQL string
	//go:embed sql/retain_conversations.sql
	retainConversationsSQL string
	//go:embed sql/retain_dead_letters.sql
	retainDeadLettersSQL string
	//go:embed sql/retain_steps.sql
	retainStepsSQL string
)

// A walk finds what is too old in a table by reading all of it, a few pages at a
// time, in the order in which the rows lie. That costs a commit nothing, as an index on
// times would, and what matters is not when a row goes but that it does.
type walk struct {
	of   string // the table
	sql  string
	keep time.Duration
	pace *pace
}

// walks returns those of what is not kept for ever.
func (c *RetentionConfig) walks() (all []*walk) {
	for _, w := range []walk{
		{of: "conversations", sql: retainConversationsSQL, keep: c.Conversations},
		{of: "dead_letters", sql: retainDeadLettersSQL, keep: c.DeadLetters},
		{of: "completions", sql: retainCompletionsSQL, keep: c.Completions},
		{of: "steps", sql: retainStepsSQL, keep: c.Steps},
	} {
		if w.keep > 0 {
			w.pace = newPace()
			all = append(all, &w)
		}
	}
	return all
}

// every is how long after the begin of a walk the next one begins: often enough for
// what is kept for so long, and seldom enough for a large table.
func (w *walk) every() time.Duration {
	return min(max(w.keep/100, time.Minute), 6*time.Hour)
}

// walkOld goes on with a walk, for a while.
func (r *Retention) walkOld(ctx context.Context, w *walk, budget time.Duration) error {
	until := time.Now().Add(budget)
	var (
		page, pages int64
		began       *time.Time
		behind      float64
	)
	if err := r.cfg.Pool.QueryRow(ctx, retainLookSQL, w.of, w.every()).Scan(&page, &began, &behind); err != nil {
		return classify(fmt.Errorf("look at the walk through %s: %w", w.of, err))
	}
	r.metrics.behind.WithLabelValues(w.of).Set(behind)
	if began == nil {
		return nil
	}
	if err := r.cfg.Pool.QueryRow(ctx, retainPagesSQL, "millrace."+w.of).Scan(&pages); err != nil {
		return classify(fmt.Errorf("measure %s: %w", w.of, err))
	}
	var err error
	for page < pages {
		if page, err = r.deleteOld(ctx, w, page); err != nil || time.Now().After(until) {
			break
		}
	}
	// What is walked is walked, also when ctx has ended meanwhile.
	ctx, cancel := outlive(ctx)
	defer cancel()
	if _, saveErr := r.cfg.Pool.Exec(ctx, retainSaveSQL, w.of, *began, page, page >= pages); saveErr != nil {
		err = errors.Join(err, classify(fmt.Errorf("note how far the walk through %s is: %w", w.of, saveErr)))
	}
	return err
}

// deleteOld deletes what is too old in the next pages, in a transaction of its own,
// and returns the page to go on from.
func (r *Retention) deleteOld(ctx context.Context, w *walk, page int64) (next int64, err error) {
	rows := w.pace.rows
	// A page holds some tens of rows. Few are too old as a rule: most of the time goes
	// into reading.
	to := page + int64(max(rows/8, 1))
	var deleted, last int64
	batch := w.pace.begin()
	batch.Queue(w.sql, place(page), place(to), w.keep, rows).QueryRow(func(row pgx.Row) error { return row.Scan(&deleted, &last) })
	err = w.pace.run(ctx, r.cfg.Pool, batch)
	if err != nil && deleted == 0 {
		return page, fmt.Errorf("delete old %s: %w", w.of, err)
	}
	r.metrics.rows.WithLabelValues(w.of).Add(float64(deleted))
	if deleted == int64(rows) {
		return last, err // there may be more on the page
	}
	return to, err
}

// place is where a page begins.
func place(page int64) pgtype.TID {
	return pgtype.TID{BlockNumber: uint32(page), Valid: true} //nolint:gosec // a table has fewer than 2^32 pages
}
