package outbox

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
)

// server is as much of PostgreSQL as the cursor depends on: transactions that take
// an xid before they draw ids, that hold their keys until they end, and snapshots
// of which of them are in progress.
type server struct {
	xid, id uint64
	running []*transaction
	ended   uint64 // the highest xid that has ended
	rows    []*stored
	holder  map[int]*transaction
}

type transaction struct {
	xid  uint64
	rows []*stored
	gone []*stored
}

type stored struct {
	id      int64
	key     int
	there   bool // committed
	deleted bool
}

func newServer() *server { return &server{holder: make(map[int]*transaction)} }

func (s *server) begin() *transaction {
	s.xid++
	t := &transaction{xid: s.xid}
	s.running = append(s.running, t)
	return t
}

// insert does nothing when another transaction holds the key.
func (s *server) insert(t *transaction, key int) {
	if holder := s.holder[key]; holder != nil && holder != t {
		return
	}
	s.holder[key] = t
	s.id++
	row := &stored{id: int64(s.id), key: key}
	t.rows = append(t.rows, row)
	s.rows = append(s.rows, row)
}

func (s *server) end(t *transaction, commit bool) {
	for _, row := range t.rows {
		row.there = commit
	}
	for _, row := range t.gone {
		row.deleted = commit
	}
	for key, holder := range s.holder {
		if holder == t {
			delete(s.holder, key)
		}
	}
	s.running = slices.DeleteFunc(s.running, func(other *transaction) bool { return other == t })
	s.ended = max(s.ended, t.xid)
}

func (s *server) snapshot() snapshot {
	snap := snapshot{xmax: s.ended + 1}
	for _, t := range s.running {
		if t.xid < snap.xmax {
			snap.running = append(snap.running, t.xid)
		}
	}
	return snap
}

// read is sql/read.sql. walked counts what it steps over.
func (s *server) read(r reading, limit int) (snap snapshot, found []*stored, walked int) {
	snap = s.snapshot()
	from := r.parked
	for i, text := range r.xids {
		xid, _ := strconv.ParseUint(text, 10, 64)
		if snap.over(xid) {
			from = min(from, r.after[i])
		}
	}
	for _, row := range s.rows {
		if row.id <= from {
			continue
		}
		walked++
		if row.there && !row.deleted && !slices.Contains(r.flying, row.id) {
			if found = append(found, row); len(found) == limit {
				break
			}
		}
	}
	return snap, found, walked
}

func ids(rows []*stored) []int64 {
	out := make([]int64, len(rows))
	for i, row := range rows {
		out[i] = row.id
	}
	return out
}

func TestCursorReadsEveryRowOnceAndInOrderWithinAKey(t *testing.T) {
	for range 300 {
		seed := rand.Uint64()
		if !readsAll(t, rand.New(rand.NewPCG(seed, 0))) {
			t.Fatalf("seed %d", seed)
		}
	}
}

// readsAll runs one history: transactions come, draw ids, hold on to them and end
// in any order, while a relay reads, deletes, and now and then begins anew.
func readsAll(t *testing.T, random *rand.Rand) (ok bool) {
	const keys, limit = 6, 4
	var (
		s        = newServer()
		c        = newCursor(0)
		answer   func()       // of a read that is under way
		batches  [][]*stored  // read, in their order
		sent     int          // so many of them are published
		deleting *transaction // of the first batch
		high     int64
		last     = make(map[int]int64) // key: id published last
		seen     = make(map[int64]bool)
		floor    int64
	)
	read := func() (found int) {
		if answer != nil {
			answer()
			answer = nil
			return 0
		}
		snap, rows, _ := s.read(c.next(), limit)
		answer = func() {
			c.saw(snap, ids(rows), len(rows) < limit)
			if len(rows) > 0 {
				batches = append(batches, rows)
			}
		}
		return len(rows)
	}
	publish := func() {
		if sent == len(batches) {
			return
		}
		for _, row := range batches[sent] {
			if seen[row.id] {
				t.Errorf("row %d is published twice", row.id)
			}
			if row.id < last[row.key] {
				t.Errorf("key %d: row %d is published after %d", row.key, row.id, last[row.key])
			}
			seen[row.id], last[row.key] = true, row.id
		}
		sent++
	}
	forget := func() {
		switch {
		case deleting != nil:
			s.end(deleting, true)
			c.gone(ids(batches[0]), high, deleting.xid)
			batches, sent, deleting = batches[1:], sent-1, nil
		case sent > 0:
			high = c.high
			deleting = s.begin()
			deleting.gone = batches[0]
		}
	}
	die := func() { // its successor knows from the marker what was published
		if deleting != nil {
			s.end(deleting, random.IntN(2) == 0)
		}
		for _, b := range batches[:sent] {
			for _, row := range b {
				row.deleted = true
			}
		}
		answer, batches, sent, deleting = nil, nil, 0, nil
		c = newCursor(floor)
	}
	writers := make(map[*transaction]bool)
	pick := func() *transaction {
		all := slices.SortedFunc(maps.Keys(writers), func(a, b *transaction) int { return cmp.Compare(a.xid, b.xid) })
		if len(all) == 0 {
			return nil
		}
		return all[random.IntN(len(all))]
	}
	for range 500 {
		switch n := random.IntN(20); {
		case n < 4:
			writers[s.begin()] = true
		case n < 9:
			if w := pick(); w != nil {
				s.insert(w, random.IntN(keys))
			}
		case n < 12:
			if w := pick(); w != nil {
				s.end(w, random.IntN(5) > 0)
				delete(writers, w)
			}
		case n < 15:
			read()
		case n < 17:
			publish()
		case n < 19:
			forget()
		case random.IntN(4) == 0:
			die()
		default:
			floor = c.floor()
		}
		if t.Failed() {
			return false
		}
	}
	for w := range writers {
		s.end(w, true)
	}
	for rest := 0; rest < 4; rest++ {
		if read() > 0 || len(batches) > 0 {
			rest = 0
		}
		publish()
		forget()
	}
	for _, row := range s.rows {
		if row.there && !seen[row.id] {
			t.Errorf("row %d of key %d is skipped", row.id, row.key)
		}
	}
	return !t.Failed()
}

// TestAnOlderTransactionMayDrawTheLaterId: that everybody older than a row's own
// transaction has ended does not mean that no lower id will come.
func TestAnOlderTransactionMayDrawTheLaterId(t *testing.T) {
	s, c := newServer(), newCursor(0)
	older, newer := s.begin(), s.begin()
	s.insert(newer, 1)
	s.insert(older, 2)
	s.end(older, true)
	step(s, c)
	step(s, c)
	if c.parked != 2 || c.floor() != 0 {
		t.Fatalf("parked at %d with floor %d, want 2 and 0", c.parked, c.floor())
	}
	s.end(newer, true)
	if _, found, _ := s.read(c.next(), 10); len(found) != 1 || found[0].id != 1 {
		t.Errorf("found %v, want the row of the transaction that ended last", ids(found))
	}
}

// step reads all there is and deletes it.
func step(s *server, c *cursor) (found []*stored, walked int) {
	snap, found, walked := s.read(c.next(), 100)
	c.saw(snap, ids(found), true)
	high, t := c.high, s.begin()
	t.gone = found
	s.end(t, true)
	c.gone(ids(found), high, t.xid)
	return found, walked
}

// TestALongTransactionCostsNoWalkUntilItEnds: the index entries of deleted rows
// stay as long as it is there.
func TestALongTransactionCostsNoWalkUntilItEnds(t *testing.T) {
	s, c := newServer(), newCursor(0)
	long := s.begin()
	s.insert(long, 1)
	for round := range 200 {
		short, beside := s.begin(), s.begin()
		for range 10 {
			s.insert(short, 2)
		}
		s.insert(beside, 3)
		s.end(short, true)
		if _, walked := step(s, c); walked > 60 {
			t.Fatalf("round %d walks over %d entries", round, walked)
		}
		s.end(beside, true)
	}
	if c.floor() != 0 {
		t.Errorf("floor %d, want 0: the first row is still to come", c.floor())
	}
	s.end(long, true)
	if found, _ := step(s, c); len(found) == 0 || found[0].id != 1 {
		t.Errorf("found %v, want the long transaction's row first", ids(found))
	}
	step(s, c)
	if _, walked := step(s, c); walked > 60 {
		t.Errorf("walks over %d entries after all", walked)
	}
	if len(c.open) > 2 {
		t.Errorf("%d open transactions are remembered", len(c.open))
	}
}

func TestParseSnapshot(t *testing.T) {
	s, err := parseSnapshot("10:20:10,14,15")
	if err != nil || s.xmax != 20 || !slices.Equal(s.running, []uint64{10, 14, 15}) {
		t.Errorf("%+v, %v", s, err)
	}
	for xid, over := range map[uint64]bool{9: true, 10: false, 11: true, 15: false, 19: true, 20: false, 21: false} {
		if s.over(xid) != over {
			t.Errorf("%d is over: %v", xid, !over)
		}
	}
	if s, err := parseSnapshot("7:7:"); err != nil || s.xmax != 7 || len(s.running) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "1:2", "1:x:", "1:2:3,y"} {
		if _, err := parseSnapshot(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
