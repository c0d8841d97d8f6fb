package logging

// ring holds lines in a fixed number of bytes, oldest first.
type ring struct {
	buf     []byte
	head    int // of the oldest line, in buf
	used    int
	lengths []int // a ring of its own
	first   int
	lines   int
}

func newRing(maxBytes, maxLines int) ring {
	return ring{buf: make([]byte, maxBytes), lengths: make([]int, maxLines)}
}

// push adds a line, which must fit the empty ring, and returns how many of the
// oldest made room for it.
func (r *ring) push(line []byte) (dropped int) {
	for r.lines == len(r.lengths) || len(r.buf)-r.used < len(line) {
		r.drop()
		dropped++
	}
	tail := (r.head + r.used) % len(r.buf)
	copied := copy(r.buf[tail:], line)
	copy(r.buf, line[copied:])
	r.lengths[(r.first+r.lines)%len(r.lengths)] = len(line)
	r.used += len(line)
	r.lines++
	return dropped
}

func (r *ring) drop() int {
	length := r.lengths[r.first]
	r.head = (r.head + length) % len(r.buf)
	r.used -= length
	r.first = (r.first + 1) % len(r.lengths)
	r.lines--
	return length
}

// pop moves the oldest lines to the end of dst: one at least, and as many as
// fit limit bytes together. It returns dst and the number of lines.
func (r *ring) pop(dst []byte, limit int) ([]byte, int) {
	lines, room := 0, limit
	for r.lines > 0 {
		length := r.lengths[r.first]
		if lines > 0 && length > room {
			break
		}
		end := min(r.head+length, len(r.buf))
		dst = append(dst, r.buf[r.head:end]...)
		dst = append(dst, r.buf[:length-(end-r.head)]...)
		r.drop()
		room -= length
		lines++
	}
	return dst, lines
}
