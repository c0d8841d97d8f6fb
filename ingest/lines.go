package ingest

import (
	"bufio"
	"errors"
	"io"
)

var (
	errLineTooLong = errors.New("line too long")
	errBodyTooLong = errors.New("body too long")
)

// lineReader splits a body into lines of bounded length. A line that is too
// long is passed over to its end, so that the next one is found.
type lineReader struct {
	in       *bufio.Reader
	maxLine  int
	maxTotal int64
	total    int64
}

// next returns the next line without its end, in memory of its own. The last
// line needs no end. A line cut short by an error of the body is not returned.
func (l *lineReader) next() ([]byte, error) {
	var line []byte
	tooLong, started := false, false
	for {
		part, err := l.in.ReadSlice('\n')
		l.total += int64(len(part))
		if l.total > l.maxTotal {
			return nil, errBodyTooLong
		}
		started = started || len(part) > 0
		ended := err == nil
		if ended {
			part = part[:len(part)-1]
		}
		if tooLong = tooLong || len(line)+len(part) > l.maxLine; tooLong {
			line = nil
		} else {
			line = append(line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && (!errors.Is(err, io.EOF) || !started):
			return nil, err
		case tooLong:
			return nil, errLineTooLong
		}
		return line, nil
	}
}
