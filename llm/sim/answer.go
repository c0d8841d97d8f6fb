package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const echoBytes = 96

var words = strings.Fields(`the mill grinds what the stream brings and each wheel turns in its own time
so that grain becomes flour flour becomes bread and nobody waits longer than the water needs`)

// Echo returns what an answer to a question begins with: "Re: ", and the
// question with its white space collapsed, cut at 96 bytes.
func Echo(question string) string {
	s := strings.Join(strings.FieldsFunc(question, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}), " ")
	if len(s) > echoBytes {
		cut := echoBytes
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut]
	}
	return "Re: " + s
}

// countTokens is the simulator's tokenizer.
func countTokens(text string) int64 { return int64(len(text)+3) / 4 }

// compose writes the answer to a call. It follows from the seed and the request.
func (s *Simulator) compose(c *call, hash [sha256.Size]byte) {
	random := rand.New(rand.NewPCG(s.cfg.Seed, binary.BigEndian.Uint64(hash[:]))) //nolint:gosec // meant to be repeatable
	echo := Echo(c.question)
	text := echo + "."
	// Exponential lengths: answers vary, and long ones are rare.
	want := int64(min(random.ExpFloat64(), 8) * float64(s.cfg.AnswerTokens))
	for countTokens(text) < want {
		text += " " + words[random.IntN(len(words))]
	}
	if c.maxTokens > 0 && countTokens(text) > c.maxTokens {
		cut := int(c.maxTokens) * 4
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text, c.truncated = text[:cut], true
	}
	c.output = countTokens(text)
	c.pieces = strings.SplitAfter(text, " ")
}

func (c *call) text() string { return strings.Join(c.pieces, "") }

// content is text, or a list of parts of which some are text.
type content string

func (c *content) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*c = content(text)
		return nil
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return errors.New("content: want a string or a list of parts")
	}
	texts := make([]string, 0, len(parts))
	for _, p := range parts {
		texts = append(texts, p.Text)
	}
	*c = content(strings.Join(texts, "\n"))
	return nil
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// read takes what is in the messages into the call.
func (c *call) read(system string, messages []message) error {
	if c.model == "" {
		return errors.New("model: missing")
	}
	if len(messages) == 0 {
		return errors.New("messages: want at least one")
	}
	text := len(system)
	for i, m := range messages {
		if m.Role == "" {
			return fmt.Errorf("messages.%d.role: missing", i)
		}
		text += len(m.Content)
		if m.Role == "user" {
			c.question = string(m.Content)
		}
	}
	c.input = max(int64(text+3)/4, 1)
	return nil
}

func decode(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("the body is not a valid request: %w", err)
	}
	return nil
}

// event is one server-sent event.
type event struct {
	name string // "": none
	data any    // a string is written as it is
}

func (e event) write(w io.Writer) error {
	var b bytes.Buffer
	if e.name != "" {
		b.WriteString("event: " + e.name + "\n")
	}
	b.WriteString("data: ")
	if text, ok := e.data.(string); ok {
		b.WriteString(text)
	} else {
		encoded, err := json.Marshal(e.data)
		if err != nil {
			return err
		}
		b.Write(encoded)
	}
	b.WriteString("\n\n")
	_, err := w.Write(b.Bytes())
	return err
}

func contentType(stream bool) string {
	if stream {
		return "text/event-stream; charset=utf-8"
	}
	return "application/json"
}

// writeJSON writes v, or half of it.
func writeJSON(w http.ResponseWriter, status int, v any, half bool) bool {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return true
	}
	w.Header().Set("Content-Type", contentType(false))
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if half {
		b = b[:len(b)/2]
	}
	_, err = w.Write(b)
	if half && err == nil {
		err = errors.Join(http.NewResponseController(w).Flush(), io.ErrUnexpectedEOF)
	}
	return err == nil
}

// pause returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
