package statestore

import (
	"encoding/binary"
	"errors"
	"time"

	"millrace"
)

// hotMessageFormat is the first byte of a message in a hot copy. Then come its
// number and its time (varints, microseconds since 1970), its role and its task's
// id (each behind its length, a varint), and its content up to the end. A turn reads
// up to [millrace.TailLength] of them: as JSON, which has content in base64 because
// it cannot carry all bytes, that was a third of what a turn cost the worker.
const hotMessageFormat = 1

func encodeHotMessage(m *millrace.Message) []byte {
	b := make([]byte, 0, 1+4*binary.MaxVarintLen64+len(m.Role)+len(m.TaskID)+len(m.Content))
	b = append(b, hotMessageFormat)
	b = binary.AppendVarint(b, m.Seq)
	b = binary.AppendVarint(b, columnTime(m.At).UnixMicro())
	b = append(binary.AppendUvarint(b, uint64(len(m.Role))), m.Role...)
	b = append(binary.AppendUvarint(b, uint64(len(m.TaskID))), m.TaskID...)
	return append(b, m.Content...)
}

var errHotMessage = errors.New("not a message of this version")

// decodeHotMessage keeps s: the strings of the message are parts of it.
func decodeHotMessage(s string) (m millrace.Message, err error) {
	if s == "" || s[0] != hotMessageFormat {
		return m, errHotMessage
	}
	s = s[1:]
	var at int64
	ok := takeVarint(&s, &m.Seq) && takeVarint(&s, &at) && takeString(&s, &m.Role) && takeString(&s, &m.TaskID)
	if !ok {
		return millrace.Message{}, errHotMessage
	}
	m.At, m.Content = time.UnixMicro(at).UTC(), s
	return m, nil
}

func takeVarint(s *string, v *int64) bool {
	u, ok := takeUvarint(s)
	*v = int64(u>>1) ^ -int64(u&1) // zigzag, as encoding/binary has it
	return ok
}

func takeString(s, v *string) bool {
	n, ok := takeUvarint(s)
	if !ok || n > uint64(len(*s)) {
		return false
	}
	*v, *s = (*s)[:n], (*s)[n:]
	return true
}

func takeUvarint(s *string) (uint64, bool) {
	var head [binary.MaxVarintLen64]byte
	u, n := binary.Uvarint(head[:copy(head[:], *s)])
	if n <= 0 {
		return 0, false
	}
	*s = (*s)[n:]
	return u, true
}
