package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// A task's JSON is split by hand rather than unmarshalled, because the payload
// has to be carried byte for byte, a field given twice or not known has to be
// named, and an error has to say where it is.

// jsonError is a place where a body is not what it should be.
type jsonError struct {
	kind   *problemKind
	detail string
	offset int
}

// checkJSON reports the first thing that keeps b from being one JSON value of
// at most maxDepth levels, in UTF-8. Nil means that b is one.
func checkJSON(b []byte, maxDepth int) *jsonError {
	if at := tooDeepAt(b, maxDepth); at >= 0 {
		return &jsonError{kind: tooDeep, detail: "nests deeper than " + itoa(maxDepth) + " levels", offset: at}
	}
	if !json.Valid(b) {
		e := &jsonError{kind: malformedJSON, detail: "not valid JSON"}
		var raw json.RawMessage
		var syntax *json.SyntaxError
		if err := json.Unmarshal(b, &raw); errors.As(err, &syntax) {
			e.detail = syntax.Error()
			e.offset = int(syntax.Offset)
			// The offset counts the bytes read, the offending one included, unless
			// there was none because the text ended.
			if e.offset > 0 && !strings.HasPrefix(e.detail, "unexpected end") {
				e.offset--
			}
		}
		return e
	}
	if !utf8.Valid(b) {
		return &jsonError{kind: malformedJSON, detail: "not valid UTF-8", offset: invalidUTF8At(b)}
	}
	return nil
}

// tooDeepAt returns where b opens more than maxDepth objects and arrays at
// once, or -1. It only counts brackets outside strings, so b need not be valid.
func tooDeepAt(b []byte, maxDepth int) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = stringEnd(b, i) - 1
		case '{', '[':
			if depth++; depth > maxDepth {
				return i
			}
		case '}', ']':
			depth--
		}
	}
	return -1
}

func invalidUTF8At(b []byte) int {
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(b)
}

// position returns the line and the column, in characters, of an offset.
func position(b []byte, offset int) (line, column int) {
	offset = min(offset, len(b))
	line = 1 + bytes.Count(b[:offset], []byte{'\n'})
	start := bytes.LastIndexByte(b[:offset], '\n') + 1
	return line, 1 + utf8.RuneCount(b[start:offset])
}

// member is one name and value of a JSON object.
type member struct {
	name  string
	value []byte // as written, without the space around it
}

// splitObject returns the members of an object in the order they are written.
// b has to be valid JSON; ok is false when it is something else than an object.
func splitObject(b []byte) (members []member, ok bool) {
	i := skipSpace(b, 0)
	if b[i] != '{' {
		return nil, false
	}
	for i = skipSpace(b, i+1); b[i] != '}'; {
		end := stringEnd(b, i)
		name := b[i:end]
		i = skipSpace(b, skipSpace(b, end)+1) // past the colon
		end = valueEnd(b, i)
		members = append(members, member{name: unquote(name), value: b[i:end]})
		if i = skipSpace(b, end); b[i] == ',' {
			i = skipSpace(b, i+1)
		}
	}
	return members, true
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// stringEnd returns where the string that starts at i ends, or len(b).
func stringEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

func valueEnd(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = stringEnd(b, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // the end of the object around a number or literal
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return i
}

func unquote(raw []byte) string {
	var s string
	_ = json.Unmarshal(raw, &s) // valid by the caller's word
	return s
}

// textOf returns the string that raw holds. It refuses half a surrogate pair,
// which no UTF-8 text can hold and which would otherwise become U+FFFD unseen,
// so that two ids could become one.
func textOf(raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", errors.New("want a string, got " + kindOf(raw))
	}
	s := unquote(raw)
	if strings.ContainsRune(s, utf8.RuneError) && !bytes.ContainsRune(raw, utf8.RuneError) &&
		!bytes.Contains(bytes.ToLower(raw), []byte(`\ufffd`)) {
		return "", errors.New("half of a surrogate pair")
	}
	return s, nil
}

func isNull(raw []byte) bool { return raw[0] == 'n' }

func kindOf(raw []byte) string {
	switch raw[0] {
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}
