package consumer

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"
)

// A commit carries, next to the lowest unfinished offset, which offsets above it
// are finished, as metadata: base64 of
//
//	byte 0   the format, 1
//	byte 1   1: run lengths, as unsigned varints: unfinished, finished,
//	            unfinished, … from the committed offset on
//	         2: a bitmap, a bit for each offset from the committed one on, the
//	            lowest bit first
//
// whichever is smaller. What does not fit Kafka's bound is cut at the top. A
// partition's next owner does not run what is marked as finished; what the
// metadata does not say, it looks up.
const (
	metadataFormat = 1
	metadataRuns   = 1
	metadataBitmap = 2

	// maxMetadata is Kafka's offset.metadata.max.bytes by default.
	maxMetadata = 4096
)

var maxMetadataBytes = base64.RawStdEncoding.DecodedLen(maxMetadata)

// offsetRange is the offsets from and up to, but not including, to.
type offsetRange struct{ from, to int64 }

// encodeMetadata returns the metadata of a commit of base: finished are ranges
// above it, ascending, that neither touch nor overlap.
func encodeMetadata(base int64, finished []offsetRange) string {
	if len(finished) == 0 {
		return ""
	}
	runs, covered := encodeRuns(base, finished)
	span := min(finished[len(finished)-1].to-base, int64(maxMetadataBytes-2)*8)
	if size := int(span+7)/8 + 2; covered < span || covered == span && size < len(runs) {
		runs = encodeBitmap(base, finished, span)
	}
	return base64.RawStdEncoding.EncodeToString(runs)
}

// encodeRuns also returns how many offsets its runs reach.
func encodeRuns(base int64, finished []offsetRange) (b []byte, covered int64) {
	b = []byte{metadataFormat, metadataRuns}
	at := base
	for _, r := range finished {
		before := len(b)
		b = binary.AppendUvarint(b, uint64(r.from-at))   //nolint:gosec // ranges ascend
		b = binary.AppendUvarint(b, uint64(r.to-r.from)) //nolint:gosec // ranges are not empty
		if len(b) > maxMetadataBytes {
			return b[:before], at - base
		}
		at = r.to
	}
	return b, at - base
}

func encodeBitmap(base int64, finished []offsetRange, span int64) []byte {
	b := make([]byte, 2+(span+7)/8)
	b[0], b[1] = metadataFormat, metadataBitmap
	for _, r := range finished {
		for o := r.from - base; o < min(r.to-base, span); o++ {
			b[2+o/8] |= 1 << (o % 8)
		}
	}
	return b
}

var errMetadata = errors.New("the commit's metadata is of another format")

// decodeMetadata returns the finished ranges above base, ascending.
func decodeMetadata(base int64, s string) ([]offsetRange, error) {
	if s == "" {
		return nil, nil
	}
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil || len(b) < 2 || len(b) > maxMetadataBytes || b[0] != metadataFormat || base < 0 || base > 1<<61 {
		return nil, errMetadata
	}
	switch b[1] {
	case metadataRuns:
		return decodeRuns(base, b[2:])
	case metadataBitmap:
		return decodeBitmap(base, b[2:]), nil
	}
	return nil, errMetadata
}

func decodeRuns(base int64, b []byte) ([]offsetRange, error) {
	var out []offsetRange
	at := base
	for len(b) > 0 {
		var ends [2]int64
		for i := range ends {
			length, n := binary.Uvarint(b)
			end := at + int64(length) //nolint:gosec // an overflow shows as a descent
			if n <= 0 || end < at {
				return nil, errMetadata
			}
			ends[i], at, b = end, end, b[n:]
		}
		if ends[0] < ends[1] {
			out = append(out, offsetRange{ends[0], ends[1]})
		}
	}
	return out, nil
}

func decodeBitmap(base int64, b []byte) []offsetRange {
	var out []offsetRange
	for i := range int64(len(b)) * 8 {
		if b[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].to == base+i {
			out[n-1].to++
		} else {
			out = append(out, offsetRange{base + i, base + i + 1})
		}
	}
	return out
}

// within reports whether ascending ranges hold an offset.
func within(ranges []offsetRange, offset int64) bool {
	_, found := slices.BinarySearchFunc(ranges, offset, func(r offsetRange, o int64) int {
		switch {
		case r.to <= o:
			return -1
		case r.from > o:
			return 1
		}
		return 0
	})
	return found
}
