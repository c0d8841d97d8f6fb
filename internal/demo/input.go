package demo

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"millrace"
)

// Turn is one message of a user.
type Turn struct {
	// Conversation tells conversations apart.
	Conversation string
	// Type is the task type.
	Type string
	// Service is what the conversation is about; empty when nobody says.
	Service string
	// Text is what the user says.
	Text string
}

// Input is where turns come from. It is read once.
type Input struct {
	name string
	// total is how many turns there are, 0 when that is not known.
	total int
	open  func() (source, error)
	// lenient goes on after a broken line: what streams in cannot be looked
	// through first.
	lenient bool
}

// source yields turns, and io.EOF after the last one. After a [LineError] it can
// be asked for the next line.
type source interface {
	next() (Turn, error)
	close() error
}

// LineError says what is wrong with a line of the input.
type LineError struct {
	File string
	Line int
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap returns what is wrong.
func (e *LineError) Unwrap() error { return e.Err }

// maxLineErrors bounds how many broken lines an error lists.
const maxLineErrors = 10

// OpenInput returns the turns of a file with one JSON object a line:
//
//	{"conversation_id": "…", "type": "…", "turn": 0, "services": ["…"], "text": "…"}
//
// Only conversation_id and text must be there, other fields are ignored, and so
// are empty lines. The file may be compressed with gzip.
//
// A file is read through before anything is sent; a broken line is an error, and
// all of them are listed, up to ten. "-" reads stdin, and a path may be a pipe:
// those may never end, so a broken line in them is reported, counted and passed
// over.
func OpenInput(path string, stdin io.Reader) (*Input, error) {
	if path == "-" {
		return &Input{name: "stdin", lenient: true, open: func() (source, error) {
			return newLines("stdin", io.NopCloser(stdin))
		}}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open input: %w", err)
	}
	if info.IsDir() {
		return nil, fmt.Errorf("open input: %w", &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR})
	}
	in := &Input{name: path, lenient: !info.Mode().IsRegular(), open: func() (source, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open input: %w", err)
		}
		return newLines(path, f)
	}}
	if in.lenient {
		return in, nil
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	return in, nil
}

// check reads the whole input and counts its turns.
func (in *Input) check() error {
	src, err := in.open()
	if err != nil {
		return err
	}
	defer src.close() //nolint:errcheck // only read
	var errs []error
	for {
		_, err := src.next()
		var broken *LineError
		switch {
		case errors.Is(err, io.EOF):
			if len(errs) == 0 && in.total == 0 {
				return fmt.Errorf("input %s holds no turns", in.name)
			}
			return errors.Join(errs...)
		case errors.As(err, &broken):
			if errs = append(errs, err); len(errs) == maxLineErrors {
				return errors.Join(append(errs, errors.New("and perhaps more"))...)
			}
		case err != nil:
			return err
		default:
			in.total++
		}
	}
}

// lines is a source over NDJSON.
type lines struct {
	name   string
	file   io.Closer
	reader *bufio.Reader
	line   int
}

// maxLineBytes is more than a task may carry.
const maxLineBytes = 8 << 20

func newLines(name string, file io.ReadCloser) (*lines, error) {
	r := bufio.NewReaderSize(file, 1<<16)
	if magic, err := r.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		unzipped, err := gzip.NewReader(r)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("input %s: %w", name, err), file.Close())
		}
		r = bufio.NewReaderSize(unzipped, 1<<16)
	}
	return &lines{name: name, file: file, reader: r}, nil
}

func (l *lines) close() error { return l.file.Close() }

func (l *lines) next() (Turn, error) {
	for {
		b, err := l.readLine()
		if err != nil {
			return Turn{}, err
		}
		if len(b) == 0 {
			continue
		}
		t, err := parseTurn(b)
		if err != nil {
			return Turn{}, &LineError{File: l.name, Line: l.line, Err: err}
		}
		return t, nil
	}
}

// readLine returns a line without its end and the spaces around it.
func (l *lines) readLine() ([]byte, error) {
	var all []byte
	l.line++
	for {
		part, err := l.reader.ReadSlice('\n')
		if len(all)+len(part) > maxLineBytes {
			return nil, fmt.Errorf("%s:%d: the line is longer than %d bytes", l.name, l.line, maxLineBytes)
		}
		all = append(all, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(all) > 0, err == nil:
			return trimSpace(all), nil
		case errors.Is(err, io.EOF):
			return nil, io.EOF
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil, fmt.Errorf("%s:%d: the gzip file is cut short: %w", l.name, l.line, err)
		}
		return nil, fmt.Errorf("%s:%d: %w", l.name, l.line, err)
	}
}

func trimSpace(b []byte) []byte {
	space := func(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
	for len(b) > 0 && space(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && space(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// defaultType is the type of turns that do not name one.
const defaultType = "chat.message"

func parseTurn(b []byte) (Turn, error) {
	var in struct {
		Conversation *string  `json:"conversation_id"`
		Type         *string  `json:"type"`
		Turn         *int64   `json:"turn"`
		Services     []string `json:"services"`
		Text         *string  `json:"text"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			if wrong.Field == "" {
				return Turn{}, fmt.Errorf("want a JSON object, got %s", wrong.Value)
			}
			want := "a string"
			switch wrong.Field {
			case "turn":
				want = "a whole number"
			case "services":
				want = "a list of strings"
			}
			return Turn{}, fmt.Errorf("%s: want %s, got %s", wrong.Field, want, wrong.Value)
		}
		return Turn{}, fmt.Errorf("not JSON: %w", err)
	}
	if in.Conversation == nil || *in.Conversation == "" {
		return Turn{}, errors.New("conversation_id: missing")
	}
	if in.Text == nil || *in.Text == "" {
		return Turn{}, errors.New("text: missing")
	}
	if n := prefixBytes + len(*in.Conversation); n > millrace.MaxConversationBytes {
		return Turn{}, fmt.Errorf("conversation_id: %d bytes, at most %d", len(*in.Conversation), millrace.MaxConversationBytes-prefixBytes)
	}
	if err := millrace.ValidateConversation(*in.Conversation); err != nil {
		return Turn{}, err
	}
	if in.Turn != nil && *in.Turn < 0 {
		return Turn{}, fmt.Errorf("turn: %d, want 0 or more", *in.Turn)
	}
	t := Turn{Conversation: *in.Conversation, Type: defaultType, Text: *in.Text}
	if in.Type != nil && *in.Type != "" {
		t.Type = *in.Type
	}
	if len(in.Services) > 0 {
		t.Service = in.Services[0]
	}
	return t, nil
}
