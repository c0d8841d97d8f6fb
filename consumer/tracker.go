package consumer

import (
	"cmp"
	"slices"
)

// tracker knows which offsets of one assignment of a partition are not done. Its
// caller serialises access.
type tracker struct {
	// pending holds the offsets handed in and not yet behind next, ascending; gaps
	// are offsets that the log does not have.
	pending []trackedOffset
	// next is the lowest offset that is not done: what is committed.
	next int64
	// last is the highest offset handed in.
	last int64
	// known is false until the first offset is handed in.
	known bool
}

type trackedOffset struct {
	offset int64
	done   bool
}

// add hands an offset in. It returns false for one that was handed in before: a
// fetch after a rewind repeats them.
func (t *tracker) add(offset int64) bool {
	if t.known && offset <= t.last {
		return false
	}
	if !t.known {
		t.known = true
		t.next = offset
	}
	if len(t.pending) == 0 {
		// Everything before is done, so a gap in the log needs no wait.
		t.next = offset
	}
	t.pending = append(t.pending, trackedOffset{offset: offset})
	t.last = offset
	return true
}

// isPending reports whether an offset was handed in and is not done.
func (t *tracker) isPending(offset int64) bool {
	i, found := t.find(offset)
	return found && !t.pending[i].done
}

// done marks an offset and moves next past all that is done.
func (t *tracker) done(offset int64) {
	i, found := t.find(offset)
	if !found {
		return
	}
	t.pending[i].done = true
	if i > 0 {
		return
	}
	n := 0
	for n < len(t.pending) && t.pending[n].done {
		n++
	}
	if t.pending = t.pending[n:]; len(t.pending) > 0 {
		t.next = t.pending[0].offset
	} else {
		t.pending = nil
		t.next = t.last + 1
	}
}

func (t *tracker) find(offset int64) (int, bool) {
	if len(t.pending) == 0 {
		return 0, false
	}
	// Where it is when the log has no gaps; with gaps it is before that.
	if i := offset - t.pending[0].offset; i >= 0 && i < int64(len(t.pending)) && t.pending[i].offset == offset {
		return int(i), true
	}
	return slices.BinarySearchFunc(t.pending, offset, func(e trackedOffset, o int64) int {
		return cmp.Compare(e.offset, o)
	})
}

// finished returns the ranges of offsets above next that are done. Offsets that
// the log does not have belong to the range around them.
func (t *tracker) finished() []offsetRange {
	var out []offsetRange
	open := false
	for _, e := range t.pending {
		switch {
		case e.done && open:
			out[len(out)-1].to = e.offset + 1
		case e.done:
			out = append(out, offsetRange{e.offset, e.offset + 1})
		}
		open = e.done
	}
	return out
}

// spread is how far the log was read ahead of the lowest unfinished offset.
func (t *tracker) spread() int64 {
	if len(t.pending) == 0 {
		return 0
	}
	return t.last - t.pending[0].offset + 1
}
