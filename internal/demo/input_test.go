package demo

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace"
	"millrace/ingest"
)

func writeInput(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "input.ndjson")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func zipped(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func all(t *testing.T, in *Input) (turns []Turn, broken []string) {
	t.Helper()
	src, err := in.open()
	if err != nil {
		t.Fatal(err)
	}
	defer src.close() //nolint:errcheck // only read
	for {
		turn, err := src.next()
		var line *LineError
		switch {
		case errors.Is(err, io.EOF):
			return turns, broken
		case errors.As(err, &line):
			broken = append(broken, err.Error())
		case err != nil:
			t.Fatal(err)
		default:
			turns = append(turns, turn)
		}
	}
}

const twoTurns = `{"conversation_id": "c1", "type": "chat.message", "turn": 0, "services": ["Banks_2", "Travel_1"], "text": "hi"}

{"conversation_id":"c2","text":"é ","unknown":{"a":[1]},"services":[]}`

func TestInputIsReadPlainAndZipped(t *testing.T) {
	want := []Turn{
		{Conversation: "c1", Type: "chat.message", Service: "Banks_2", Text: "hi"},
		{Conversation: "c2", Type: "chat.message", Text: "é "},
	}
	for name, content := range map[string][]byte{
		"plain": []byte(twoTurns), "zipped": zipped(t, twoTurns), "carriage returns": []byte(strings.ReplaceAll(twoTurns, "\n", "\r\n")),
	} {
		t.Run(name, func(t *testing.T) {
			in, err := OpenInput(writeInput(t, content), nil)
			if err != nil {
				t.Fatal(err)
			}
			if in.total != 2 {
				t.Errorf("counted %d turns, want 2", in.total)
			}
			if got, _ := all(t, in); !slices.Equal(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			stream, err := OpenInput("-", bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			if got, broken := all(t, stream); !slices.Equal(got, want) || broken != nil {
				t.Errorf("from stdin: got %+v and %q, want %+v", got, broken, want)
			}
		})
	}
}

func TestBrokenLinesAreNamed(t *testing.T) {
	good := `{"conversation_id":"c","text":"t"}` + "\n"
	tests := map[string]struct{ line, want string }{
		"no JSON":           {"hello", "not JSON: invalid character"},
		"cut off":           {`{"conversation_id":"c"`, "not JSON: unexpected end"},
		"an array":          {`[1]`, "want a JSON object, got array"},
		"no conversation":   {`{"text":"t"}`, "conversation_id: missing"},
		"null conversation": {`{"conversation_id":null,"text":"t"}`, "conversation_id: missing"},
		"a number":          {`{"conversation_id":7,"text":"t"}`, "conversation_id: want a string, got number"},
		"no text":           {`{"conversation_id":"c"}`, "text: missing"},
		"empty text":        {`{"conversation_id":"c","text":""}`, "text: missing"},
		"negative turn":     {`{"conversation_id":"c","text":"t","turn":-1}`, "turn: -1"},
		"half a turn":       {`{"conversation_id":"c","text":"t","turn":1.5}`, "turn: want a whole number, got number 1.5"},
		"services":          {`{"conversation_id":"c","text":"t","services":"x"}`, "services: want a list of strings, got string"},
		"a long id":         {`{"conversation_id":"` + strings.Repeat("x", 250) + `","text":"t"}`, "at most 242"},
		"a control":         {`{"conversation_id":"a\u0007b","text":"t"}`, "control character"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := writeInput(t, []byte(good+"\n"+test.line+"\n"+good))
			_, err := OpenInput(path, nil)
			if err == nil || !strings.HasPrefix(err.Error(), path+":3: ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s:3 and %q", err, path, test.want)
			}
			in, err := OpenInput("-", strings.NewReader(good+"\n"+test.line+"\n"+good))
			if err != nil {
				t.Fatal(err)
			}
			turns, broken := all(t, in)
			if len(turns) != 2 || len(broken) != 1 || !strings.HasPrefix(broken[0], "stdin:3: ") {
				t.Errorf("from stdin: %d turns and %q, want 2 and the line", len(turns), broken)
			}
		})
	}
}

func TestUnusableInputsAreRefused(t *testing.T) {
	whole := zipped(t, strings.Repeat(twoTurns+"\n", 1000))
	tests := map[string]struct {
		path string
		want string
	}{
		"missing":    {filepath.Join(t.TempDir(), "none"), "no such file"},
		"a folder":   {t.TempDir(), "is a directory"},
		"empty":      {writeInput(t, nil), "holds no turns"},
		"half a zip": {writeInput(t, whole[:len(whole)/2]), "the gzip file is cut short"},
		"no zip":     {writeInput(t, append([]byte{0x1f, 0x8b}, make([]byte, 20)...)), "gzip"},
		"endless":    {writeInput(t, bytes.Repeat([]byte{'x'}, maxLineBytes+1)), "longer than"},
		"all broken": {writeInput(t, bytes.Repeat([]byte("x\n"), 50)), "and perhaps more"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := OpenInput(test.path, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
}

func FuzzParseTurn(f *testing.F) {
	f.Add([]byte(`{"conversation_id":"c","type":"t","turn":1,"services":["s"],"text":"x"}`))
	f.Add([]byte(`{"conversation_id":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		turn, err := parseTurn(b)
		if err != nil {
			return
		}
		if turn.Text == "" || turn.Type == "" || turn.Conversation == "" {
			t.Errorf("took %q for %+v", b, turn)
		}
		if err := millrace.ValidateConversation(strings.Repeat("x", prefixBytes) + turn.Conversation); err != nil {
			t.Error(err)
		}
	})
}

func TestGeneratedConversationsFollowFromTheSeed(t *testing.T) {
	one, _ := all(t, Generate(0, 7))
	two, _ := all(t, Generate(0, 7))
	other, _ := all(t, Generate(0, 8))
	if !slices.Equal(one, two) || slices.Equal(one, other) {
		t.Error("the seed does not decide, and alone")
	}
	turns := make(map[string]int)
	services := make(map[string]bool)
	adjacent := 0
	for i, turn := range one {
		turns[turn.Conversation]++
		services[turn.Service] = true
		if strings.ContainsAny(turn.Text, "{}") {
			t.Errorf("unfilled: %q", turn.Text)
		}
		if i > 0 && one[i-1].Conversation == turn.Conversation {
			adjacent++
		}
	}
	if len(turns) != DefaultConversations || len(services) != len(topics) {
		t.Errorf("%d conversations about %d services", len(turns), len(services))
	}
	for conversation, n := range turns {
		if n < 3 || n > 8 {
			t.Errorf("%s has %d turns, want 3 to 8", conversation, n)
		}
	}
	if adjacent > len(one)/4 {
		t.Errorf("%d of %d turns follow one of their own conversation: they are not interleaved", adjacent, len(one))
	}
}

func TestRulesGiveEveryServiceItsPriority(t *testing.T) {
	rules, err := ingest.ParseRules("rules.yaml", RulesYAML, millrace.DefaultPriorities())
	if err != nil {
		t.Fatal(err)
	}
	for service, want := range map[string]millrace.Priority{
		"support": millrace.High, "travel": millrace.Normal, "coding": millrace.Batch,
		"Banks_2": millrace.High, "Flights_3": millrace.Normal, "Events_1": millrace.Batch, "": millrace.Normal,
	} {
		req := &ingest.Request{Type: defaultType}
		if service != "" {
			req.Attributes = map[string]string{"service": service}
		}
		if got, err := rules.Classify(t.Context(), req); err != nil || got != want {
			t.Errorf("service %q: got %q, %v, want %q", service, got, err, want)
		}
	}
}
