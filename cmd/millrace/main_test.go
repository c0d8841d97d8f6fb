package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// outcome is what one run of the binary did.
type outcome struct {
	code     int
	out, err string
}

func call(t *testing.T, environ []string, in string, args ...string) outcome {
	t.Helper()
	var out, err bytes.Buffer
	code := run(&cli{in: strings.NewReader(in), out: &out, err: &err, environ: environ, exit: func(int) { t.Error("exit was called") }}, args)
	return outcome{code, out.String(), err.String()}
}

func TestExitCodes(t *testing.T) {
	tests := []struct {
		args string
		env  []string
		code int
		err  string
	}{
		{"version", nil, 0, ""},
		{"--help", nil, 0, ""},
		{"topics --help", nil, 0, ""},
		{"nope", nil, 2, `unknown command "nope"`},
		{"version extra", nil, 2, `unknown command "extra"`},
		{"version --nope", nil, 2, "unknown flag"},
		{"config --json --check", nil, 2, "none of the others can be"},
		{"config --role judge", nil, 2, "want one of tool"},
		{"config --into x", nil, 2, "--into needs --markdown"},
		{"config --check", []string{"MILLRACE_SLOTS=x"}, 2, `MILLRACE_SLOTS="x"`},
		{"topics", []string{"MILLRACE_SLOTS=x"}, 2, `MILLRACE_SLOTS="x"`},
		{"submit", nil, 2, "either --payload or --batch"},
		{"submit --payload x --batch y", nil, 2, "either --payload or --batch"},
		{"submit --batch y --type t", nil, 2, "--type does not go with --batch"},
		{"submit --payload x", nil, 2, "not JSON"},
		{"submit --payload @/nowhere", nil, 2, "--payload: open /nowhere: no such file"},
		{"submit --batch /nowhere", nil, 2, "--batch: open /nowhere: no such file"},
		{"submit --payload {} --deadline -5s", nil, 2, "--deadline -5s: want more than 0"},
		{"submit --payload {} --run-at tomorrow", nil, 2, `--run-at "tomorrow": want an RFC 3339 time`},
		{"submit --payload {} --delay -5s", nil, 2, "--delay -5s: want 0 or more"},
		{"submit --payload {} --delay 5s --run-at 2026-01-01T00:00:00Z", nil, 2, "either --run-at or --delay"},
		{"submit --payload {} --deadline 0", nil, 2, "--deadline 0s: want more than 0"},
		{"submit --payload {} --timeout 0", nil, 2, "--timeout 0s: want more than 0"},
		{"submit --payload {} --on-busy wait", nil, 2, "want enqueue, coalesce"},
		{"up --demo --input /nowhere", nil, 2, "--input: open input: stat /nowhere: no such file"},
		{"up --demo --input /", nil, 2, "is a directory"},
		{"bench", nil, 2, "want one of engine, commit, outbox"},
		{"bench nope", nil, 2, `unknown command "nope"`},
		{"explain", nil, 2, "accepts 1 arg"},
		{"explain x --max-records -1", nil, 2, "want 0 or more"},
		{"submit --payload {}", []string{"MILLRACE_URL=http://127.0.0.1:1"}, 1, "API at http://127.0.0.1:1 (MILLRACE_URL): dial"},
		{"submit --payload {}", []string{"MILLRACE_URL=http://u:upass@127.0.0.1:1"}, 1, "API at http://u:***@127.0.0.1:1 (MILLRACE_URL): dial"},
		{"tail --count -1", nil, 2, "want 1 or more"},
		{"migrate --json", nil, 2, "--json goes with --check"},
		{"migrate --check", []string{"MILLRACE_SLOTS=x"}, 2, `MILLRACE_SLOTS="x"`},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			got := call(t, test.env, "", strings.Fields(test.args)...)
			if got.code != test.code || !strings.Contains(got.err, test.err) {
				t.Errorf("code %d, want %d; error %q, want %q", got.code, test.code, got.err, test.err)
			}
		})
	}
}

func TestConfigShowsWhatIsWrongBelowTheTable(t *testing.T) {
	got := call(t, []string{"MILLRACE_SLOTS=x", "MILLRACE_HTTP_ADDR=y", "MILLRACE_HANDLER=z", "MILLRACE_POOL=gpu"}, "", "config")
	if got.code != 2 {
		t.Errorf("code %d", got.code)
	}
	for _, name := range []string{"MILLRACE_SLOTS", "MILLRACE_HTTP_ADDR", "MILLRACE_HANDLER"} {
		if !strings.Contains(got.err, name) || !strings.Contains(got.out, name) {
			t.Errorf("%s is not in table and error", name)
		}
	}
	if !strings.Contains(got.out, "• │ MILLRACE_POOL") {
		t.Errorf("what is set is not marked:\n%s", got.out)
	}
}

func TestConfigAsJSONMasksSecrets(t *testing.T) {
	got := call(t, []string{"MILLRACE_POSTGRES_URL=postgres://u:hunter2@h/db"}, "", "config", "--json")
	var all []struct{ Name, Value string }
	if err := json.Unmarshal([]byte(got.out), &all); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got.out, `"postgres://u:***@h/db"`) || strings.Contains(got.out, "hunter2") {
		t.Error("the URL is not shown masked")
	}
}

func TestConfigTableGoesIntoADocument(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	document := "# Title\n\n" + settingsBegin + "old\n" + settingsEnd + "\nrest\n"
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	// The environment of whoever generates the document is no part of it.
	for range 2 {
		if got := call(t, []string{"MILLRACE_POOL=mine"}, "", "config", "--markdown", "--into", path); got.code != 0 {
			t.Fatal(got.err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	if !strings.HasPrefix(text, "# Title\n\n"+settingsBegin+"| Setting |") || !strings.HasSuffix(text, "|\n"+settingsEnd+"\nrest\n") || strings.Contains(text, "mine") {
		t.Errorf("got:\n%s", text)
	}
	if err := os.WriteFile(path, []byte("no markers\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := call(t, nil, "", "config", "--markdown", "--into", path); got.code != 1 || !strings.Contains(got.err, "lacks the line") {
		t.Errorf("without markers: %d %s", got.code, got.err)
	}
}

func TestEveryCommandHelps(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		for _, child := range c.Commands() {
			visit(child)
		}
	}
	visit(newRoot(&cli{}))
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	exited := make(chan int, 1)
	c := &cli{exit: func(code int) { exited <- code }}
	ctx, stop := c.untilSignal(t.Context())
	defer stop()
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-exited; code != 128+15 {
		t.Errorf("code %d", code)
	}
}
