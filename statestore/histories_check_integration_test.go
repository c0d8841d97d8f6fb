//go:build integration

package statestore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"millrace"
)

// tables is what PostgreSQL holds after a history.
type tables struct {
	completions   map[millrace.Key]completionRow
	conversations map[string]modelConversation
	outbox        []outboxRow
	deadLetters   map[millrace.Key][]string // details
	steps         []millrace.Key
	deadlocks     int
}

type completionRow struct {
	Key          millrace.Key
	Conversation string
	Status       millrace.Status
	By           string // id of the attempt
}

type outboxRow struct {
	id                int64
	key, event, topic string
	data              string
}

// modelConversation is a conversation as the tables have it, or as the model says
// that it must be.
type modelConversation struct {
	version, length int64
	state           string
	messages        []string // task, content and place of each
}

func (c modelConversation) String() string {
	return fmt.Sprintf("version %d, length %d, state %s, messages %v", c.version, c.length, c.state, c.messages)
}

func readOutbox(ctx context.Context, pool *pgxpool.Pool) ([]outboxRow, error) {
	rows, err := pool.Query(ctx, `SELECT id, convert_from(key, 'UTF8'), event_id, topic, COALESCE(convert_from(data, 'UTF8'), '') FROM millrace.outbox ORDER BY id`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r outboxRow, err error) {
		return r, row.Scan(&r.id, &r.key, &r.event, &r.topic, &r.data)
	})
}

func readTables(t *testing.T, pool *pgxpool.Pool) tables {
	t.Helper()
	tb := tables{
		completions: make(map[millrace.Key]completionRow), conversations: make(map[string]modelConversation),
		deadLetters: make(map[millrace.Key][]string),
	}
	each := func(sql string, scan func(pgx.Rows) error) {
		t.Helper()
		rows, err := pool.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				t.Fatal(err)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
	}
	each(`SELECT task_id, redrive, COALESCE(conversation_id, ''), status, error FROM millrace.completions`, func(rows pgx.Rows) error {
		var r completionRow
		err := rows.Scan(&r.Key.ID, &r.Key.Redrive, &r.Conversation, &r.Status, &r.By)
		tb.completions[r.Key] = r
		return err
	})
	each(`SELECT id, version, length, COALESCE(state::text, '') FROM millrace.conversations`, func(rows pgx.Rows) error {
		var (
			id string
			c  modelConversation
		)
		err := rows.Scan(&id, &c.version, &c.length, &c.state)
		tb.conversations[id] = c
		return err
	})
	each(`SELECT conversation_id, task_id || ' ' || convert_from(content, 'UTF8') || ' ' || seq FROM millrace.messages ORDER BY conversation_id, seq`, func(rows pgx.Rows) error {
		var id, text string
		err := rows.Scan(&id, &text)
		c := tb.conversations[id]
		c.messages = append(c.messages, text)
		tb.conversations[id] = c
		return err
	})
	each(`SELECT task_id, redrive, detail FROM millrace.dead_letters`, func(rows pgx.Rows) error {
		var (
			key    millrace.Key
			detail string
		)
		err := rows.Scan(&key.ID, &key.Redrive, &detail)
		tb.deadLetters[key] = append(tb.deadLetters[key], detail)
		return err
	})
	each(`SELECT DISTINCT task_id, redrive FROM millrace.steps`, func(rows pgx.Rows) error {
		var key millrace.Key
		err := rows.Scan(&key.ID, &key.Redrive)
		tb.steps = append(tb.steps, key)
		return err
	})
	var err error
	if tb.outbox, err = readOutbox(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	tb.deadlocks = count(t, pool, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`)
	return tb
}

// model is what must have happened, by what the completions say.
type model struct {
	*history
	tables
	byID map[string]*attempt
	// won are the attempts whose own task's completion is theirs.
	won map[string]*attempt
}

// check fails the test for what the tables hold and the workers were told that
// does not agree.
func (h *history) check(t *testing.T) {
	t.Helper()
	m := model{history: h, tables: readTables(t, h.direct), byID: make(map[string]*attempt), won: make(map[string]*attempt)}
	for _, a := range h.attempts {
		m.byID[a.id] = a
		if m.completions[a.key()].By == a.id {
			m.won[a.id] = a
		}
	}
	for _, a := range h.attempts {
		m.judgeCalls(a)
	}
	m.judgeCompletions()
	m.judgeCancels()
	m.judgeConversations()
	m.judgeOutbox()
	m.judgeSteps()
	if m.deadlocks > 0 {
		m.problem("%d deadlocks", m.deadlocks)
	}
	if told := m.told(); told[millrace.Committed] < len(h.attempts)/10 || len(m.won) == 0 {
		m.problem("a history in which little happens: %s", h)
	}
	for i, problem := range h.problems {
		if i == 30 {
			t.Errorf("and %d more", len(h.problems)-i)
			break
		}
		t.Error(problem)
	}
}

func (h *history) told() map[millrace.Outcome]int {
	told := make(map[millrace.Outcome]int)
	for _, a := range h.attempts {
		for _, c := range a.calls {
			if c.err == nil {
				told[c.outcome]++
			}
		}
	}
	return told
}

// String says what has happened, so that one sees that something has.
func (h *history) String() string {
	told, unknown, refused, cuts := h.told(), 0, 0, int64(0)
	for _, a := range h.attempts {
		for _, c := range a.calls {
			switch {
			case millrace.IsUnavailable(c.err):
				unknown++
			case c.err != nil:
				refused++
			}
		}
	}
	for _, f := range h.faults {
		cuts += f.cuts.Load()
	}
	return fmt.Sprintf("%d turns; told %d committed, %d already completed, %d conflict, %d refused, %d not; %d cancels, %d redriven, %d connections lost",
		len(h.attempts), told[millrace.Committed], told[millrace.AlreadyCompleted], told[millrace.Conflict], refused, unknown,
		len(h.cancels), len(h.redrives), cuts)
}

// judgeCalls compares what a worker was told of a turn with whose effects there
// are.
func (m *model) judgeCalls(a *attempt) {
	row, completed := m.completions[a.key()]
	won, committed, unknown := m.won[a.id] != nil, false, false
	for _, c := range a.calls {
		switch {
		case millrace.IsUnavailable(c.err):
			unknown = true
			continue
		case c.err != nil:
			if won || !strings.Contains(fmt.Sprint(a.completion.Effects.Messages), "\x00") {
				m.problem("%s of %v was refused: %v; its completion there: %v", a.id, a.key(), c.err, won)
			}
			continue
		}
		switch c.outcome {
		case millrace.Committed:
			if !won || committed {
				m.problem("%s was told that it committed %v, which is by %q; told before: %v", a.id, a.key(), row.By, committed)
			}
			committed = true
		case millrace.AlreadyCompleted:
			if !completed || won && !unknown {
				m.problem("%s was told that %v was completed already; that is by %q, completed %v", a.id, a.key(), row.By, completed)
			}
		case millrace.Conflict:
			now := m.conversations[a.completion.Task.Conversation].version
			if won || !a.completion.Effects.Touches() && a.completion.Status != millrace.StatusCompleted || now <= a.completion.Base.Version {
				m.problem("%s was told that %v conflicts on version %d; the conversation has %d; its completion there: %v",
					a.id, a.key(), a.completion.Base.Version, now, won)
			}
		}
	}
	if won && !committed && !unknown {
		m.problem("%s committed %v and was not told", a.id, a.key())
	}
}

// judgeCompletions: those that end along with another are by that one's attempt
// and come with it alone, and dead letters come with their completions.
func (m *model) judgeCompletions() {
	letters := make(map[millrace.Key][]string)
	for key, row := range m.completions {
		a := m.byID[row.By]
		if a == nil {
			if row.Status != millrace.StatusCancelled || row.By != "cancelled" {
				m.problem("the completion of %v is nobody's: %+v", key, row)
			}
			continue
		}
		own := key == a.key()
		also := slices.ContainsFunc(a.completion.Also, func(other millrace.Also) bool { return other.Task.Key() == key })
		if !own && (!also || m.won[a.id] == nil) || row.Status != a.completion.Status || row.Conversation != a.completion.Task.Conversation {
			m.problem("%s of %v has left the completion %+v", a.id, a.key(), row)
		}
		if a.completion.DeadLetter != nil {
			letters[key] = []string{a.id}
		}
	}
	for _, a := range m.won {
		for _, other := range a.completion.Also {
			if _, completed := m.completions[other.Task.Key()]; !completed {
				m.problem("%s committed %v without %v, which was to end along with it", a.id, a.key(), other.Task.Key())
			}
		}
	}
	if !equalMaps(letters, m.deadLetters) {
		m.problem("dead letters %v, want %v", m.deadLetters, letters)
	}
}

func (m *model) judgeCancels() {
	for _, c := range m.cancels {
		found := false
		for key, row := range m.completions {
			found = found || key.ID == c.id && row.Status == c.status
		}
		if !found {
			m.problem("a cancel of %s was told that it is %s", c.id, c.status)
		}
	}
}

// judgeConversations runs the turns that have committed through the model, in the
// order of the versions they ran on: there must be one for each version, and what
// comes of them must be what the tables hold and what workers were given.
func (m *model) judgeConversations() {
	turns := make(map[string][]*attempt)
	for _, a := range m.won {
		if a.completion.Effects.Touches() {
			turns[a.completion.Task.Conversation] = append(turns[a.completion.Task.Conversation], a)
		}
	}
	versions := make(map[string][]modelConversation)
	for n := range historyConversations {
		id := fmt.Sprintf("conv-%d", n)
		slices.SortFunc(turns[id], func(a, b *attempt) int { return cmp.Compare(a.completion.Base.Version, b.completion.Base.Version) })
		now := modelConversation{}
		versions[id] = append(versions[id], now)
		for i, a := range turns[id] {
			if a.completion.Base.Version != int64(i) {
				m.problem("turn %d of %s is %s, which ran on version %d", i+1, id, a.id, a.completion.Base.Version)
			}
			now = now.after(a)
			versions[id] = append(versions[id], now)
		}
		if got := m.conversations[id]; got.String() != now.String() {
			m.problem("%s is\n  %v, want\n  %v", id, got, now)
		}
	}
	for _, o := range m.opened {
		if int(o.conv.Version) >= len(versions[o.conv.ID]) {
			m.problem("%s gave version %d of %s, which has %d", o.from, o.conv.Version, o.conv.ID, len(versions[o.conv.ID])-1)
			continue
		}
		got := modelConversation{version: o.conv.Version, length: o.conv.Length, state: string(o.conv.State)}
		for _, said := range o.conv.Tail {
			got.messages = append(got.messages, fmt.Sprintf("%s %s %d", said.TaskID, said.Content, said.Seq))
		}
		want := versions[o.conv.ID][o.conv.Version]
		// A tail may be shorter than the history, but ends where that ends.
		want.messages = want.messages[max(0, len(want.messages)-len(got.messages)):]
		if got.String() != want.String() {
			m.problem("%s gave of %s\n  %v, which was\n  %v", o.from, o.conv.ID, got, want)
		}
	}
}

func (c modelConversation) after(a *attempt) modelConversation {
	c.version++
	if s := a.completion.Effects.State; s != nil {
		c.state = string(s)
	}
	c.messages = slices.Clone(c.messages)
	for _, said := range a.completion.Effects.Messages {
		c.length++
		c.messages = append(c.messages, fmt.Sprintf("%s %s %d", a.key().ID, said.Content, c.length))
	}
	return c
}

// judgeOutbox wants one set of events for each completion, in the order that the
// turn emitted them, and those of turns that followed each other in that order.
func (m *model) judgeOutbox() {
	ids := make(map[string][]int64)
	for _, row := range m.outbox {
		ids[row.event] = append(ids[row.event], row.id)
	}
	expected := 0
	first := make(map[*attempt]map[string]int64) // id, by key
	for key, row := range m.completions {
		a := m.byID[row.By]
		last := int64(0)
		expect := func(event, under, data string) {
			expected++
			if len(ids[event]) != 1 {
				m.problem("event %s stands in the outbox %d times", event, len(ids[event]))
				return
			}
			at := slices.IndexFunc(m.outbox, func(r outboxRow) bool { return r.event == event })
			got := m.outbox[at]
			if under != "" && got.key != under || !strings.Contains(got.data, data) || got.id <= last {
				m.problem("event %s of %s is %+v, want it under %q with %q after %d", event, row.By, got, under, data, last)
			}
			last = got.id
			if a != nil && first[a] == nil {
				first[a] = make(map[string]int64)
			}
			if a != nil && first[a][got.key] == 0 {
				first[a][got.key] = got.id
			}
		}
		under := cmp.Or(row.Conversation, key.ID)
		if a != nil && key == a.key() {
			for i, e := range a.completion.Effects.Events {
				expect(millrace.EventID(key, i), cmp.Or(e.Key, under), a.id)
			}
		}
		if a != nil && a.completion.DeadLetter != nil {
			expect(millrace.DeadLetterEventID(key), under, "")
		}
		expect(millrace.ResultEventID(key), under, `"error":"`+row.By+`"`)
	}
	if expected != len(m.outbox) {
		m.problem("%d events in the outbox, want %d", len(m.outbox), expected)
	}
	for a, keys := range first {
		for b, others := range first {
			if !m.before(a, b) {
				continue
			}
			for key, id := range keys {
				if other, both := others[key]; both && other < id {
					m.problem("%s committed before %s, and its events of key %s have ids from %d, the other's from %d", a.id, b.id, key, id, other)
				}
			}
		}
	}
}

// before reports whether one turn is known to have committed before another: it
// was told so before the other was handed in, or the other ran on what it left.
func (m *model) before(a, b *attempt) bool {
	if a == b || m.won[a.id] == nil || m.won[b.id] == nil {
		return false
	}
	ca, cb := &a.completion, &b.completion
	if ca.Task.Conversation != "" && ca.Task.Conversation == cb.Task.Conversation && ca.Effects.Touches() && cb.Effects.Touches() {
		return ca.Base.Version < cb.Base.Version
	}
	end := a.calls[len(a.calls)-1]
	return end.err == nil && end.ended.Before(b.calls[0].began)
}

// judgeSteps: what the journal gave back was written there for that run, and it is
// empty once a task is complete, but for a run that had not heard of it.
func (m *model) judgeSteps() {
	for _, output := range m.replayed {
		if !m.finished[output] {
			m.problem("the journal gave back what nobody had written for that run: %s", output)
		}
	}
	for _, key := range m.steps {
		a := m.byID[m.completions[key].By]
		if a != nil && m.won[a.id] != nil && m.begun[key].Before(a.calls[0].began) {
			m.problem("steps of %v are there although %s has completed it", key, a.id)
		}
	}
}

func equalMaps(a, b map[millrace.Key][]string) bool {
	for key := range a {
		if !slices.Equal(a[key], b[key]) {
			return false
		}
	}
	return len(a) == len(b)
}
