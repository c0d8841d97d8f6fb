package outbox

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// cursor knows where to read a shard, so that neither a row that commits late is
// skipped nor the rows deleted before are walked over again and again: as long as
// somebody pins the xmin horizon, none of their index entries can go.
//
// Ids are drawn before they are committed, so rows may turn up behind what has
// been read. They belong to transactions that were in progress then, and the
// cursor remembers which:
//
//   - A transaction has an id of its own (xid) before it draws ids for rows; a
//     trigger of the outbox sees to that.
//   - The transaction that deletes published rows takes its xid after the highest
//     id known at that moment, high, was drawn. So whoever drew an id up to high
//     has a lower xid: the pair is a mark.
//   - A read whose snapshot covers the mark's xid knows everybody who may have
//     rows to come up to high: those below the xid who are in progress in the
//     snapshot. They are remembered as open, each with where its rows may begin,
//     and reading goes on from high: it is parked there.
//   - A read begins where an open transaction's rows may begin if that
//     transaction is over in the read's own snapshot, else at the parked position.
//     So a late row is read no later than anything that was committed after it,
//     which is what order within a key rests on.
//
// A transaction that stays open for ten minutes costs nothing until it ends, and
// then one longer read. A snapshot without an xid costs nothing at all.
type cursor struct {
	parked int64
	open   map[uint64]int64 // xid: its rows to come have higher ids than this
	marks  []mark           // ascending in both
	high   int64
	flying map[int64]struct{} // read and not yet deleted
}

type mark struct {
	high int64
	xid  uint64
}

// newCursor begins behind floor: every row up to it has been deleted, and none
// will come.
func newCursor(floor int64) *cursor {
	return &cursor{parked: floor, high: floor, open: make(map[uint64]int64), flying: make(map[int64]struct{})}
}

// reading is what the next read has to be told.
type reading struct {
	parked int64
	xids   []string // as PostgreSQL reads an xid8
	after  []int64  // of the same index
	flying []int64
}

func (c *cursor) next() reading {
	r := reading{
		parked: c.parked, xids: make([]string, 0, len(c.open)), after: make([]int64, 0, len(c.open)),
		flying: make([]int64, 0, len(c.flying)),
	}
	for xid, after := range c.open {
		r.xids, r.after = append(r.xids, strconv.FormatUint(xid, 10)), append(r.after, after)
	}
	for id := range c.flying {
		r.flying = append(r.flying, id)
	}
	slices.Sort(r.flying)
	return r
}

// saw takes what a read with next has found: the ids in ascending order, and
// whether there were no more.
func (c *cursor) saw(s snapshot, ids []int64, all bool) {
	covered := int64(math.MaxInt64)
	if !all && len(ids) > 0 {
		covered = ids[len(ids)-1]
	}
	for _, id := range ids {
		c.flying[id] = struct{}{}
		c.high = max(c.high, id)
	}
	for xid, after := range c.open {
		switch {
		case !s.over(xid):
		case covered >= c.parked:
			delete(c.open, xid)
		default: // the rest of its rows comes with the next read
			c.open[xid] = max(after, covered)
		}
	}
	n := 0
	for n < len(c.marks) && c.marks[n].xid <= s.xmax && c.marks[n].high <= covered {
		n++
	}
	if n == 0 {
		return
	}
	m := c.marks[n-1]
	c.marks = slices.Delete(c.marks, 0, n)
	if m.high <= c.parked {
		return
	}
	for _, xid := range s.running {
		if _, known := c.open[xid]; !known && xid < m.xid {
			c.open[xid] = c.parked
		}
	}
	c.parked = m.high
}

// gone takes that rows have been deleted, by a transaction that took its xid when
// high was the cursor's. An xid of 0 is unknown.
func (c *cursor) gone(ids []int64, high int64, xid uint64) {
	for _, id := range ids {
		delete(c.flying, id)
	}
	if xid != 0 {
		c.marks = append(c.marks, mark{high, xid})
	}
}

// floor is where a reader that knows nothing else may begin.
func (c *cursor) floor() int64 {
	floor := c.position()
	for _, after := range c.open {
		floor = min(floor, after)
	}
	return floor
}

// position is the same but for rows that commit late.
func (c *cursor) position() int64 {
	position := c.parked
	for id := range c.flying {
		position = min(position, id-1)
	}
	return position
}

// snapshot is a pg_snapshot.
type snapshot struct {
	xmax    uint64   // all from here on are in progress, or have not begun
	running []uint64 // those below xmax that are in progress
}

// parseSnapshot reads "xmin:xmax:xid,xid,…".
func parseSnapshot(s string) (snapshot, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return snapshot{}, fmt.Errorf("parse snapshot %q: want three parts", s)
	}
	xmax, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return snapshot{}, fmt.Errorf("parse snapshot: %w", err)
	}
	out := snapshot{xmax: xmax}
	for part := range strings.SplitSeq(parts[2], ",") {
		if part == "" {
			continue
		}
		xid, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return snapshot{}, fmt.Errorf("parse snapshot: %w", err)
		}
		out.running = append(out.running, xid)
	}
	return out, nil
}

// over reports whether a transaction had ended when the snapshot was taken.
func (s snapshot) over(xid uint64) bool {
	return xid < s.xmax && !slices.Contains(s.running, xid)
}
