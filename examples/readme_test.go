package examples_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the snippets in the documents")

// documents show snippets. In them a line such as
//
//	<!-- snippet:examples/shell/submit.sh#submit -->
//
// stands before a fenced block, which holds what is between the lines with
// "snippet:submit" and "snippet:end" in that file.
var documents = []string{"README.md", "examples/README.md", "examples/python/README.md"}

// marked are the languages whose blocks have to come from an example.
var marked = []string{"go", "java", "python"}

func TestDocumentsShowTheExamplesAsTheyAre(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range documents {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(root, filepath.FromSlash(name))
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			updated, err := withSnippets(string(content), func(file, snippet string) (string, error) {
				source, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
				if err != nil {
					return "", err
				}
				return cut(string(source), snippet)
			})
			if err != nil {
				t.Fatal(err)
			}
			if updated == string(content) {
				return
			}
			if !*update {
				t.Fatalf("%s shows examples as they are no more; run: go test ./examples -update", name)
			}
			if err := os.WriteFile(path, []byte(updated), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

var (
	snippetLine = regexp.MustCompile(`^\s*<!-- snippet:([^#\s]+)#(\S+) -->$`)
	fence       = regexp.MustCompile("^\\s*(```+)(\\S*)")
)

// withSnippets returns a document with the content of each block that has a
// marker taken from source.
func withSnippets(document string, source func(file, snippet string) (string, error)) (string, error) {
	var errs []error
	var out strings.Builder
	lines := strings.SplitAfter(document, "\n")
	for i := 0; i < len(lines); i++ {
		out.WriteString(lines[i])
		if open := fence.FindStringSubmatch(lines[i]); open != nil {
			for _, language := range marked {
				if open[2] == language {
					errs = append(errs, fmt.Errorf("line %d: a block of %s without a snippet marker before it", i+1, language))
				}
			}
			end := blockEnd(lines, i, open[1])
			out.WriteString(strings.Join(lines[i+1:min(end+1, len(lines))], ""))
			i = end
			continue
		}
		marker := snippetLine.FindStringSubmatch(strings.TrimRight(lines[i], "\r\n"))
		if marker == nil {
			continue
		}
		content, err := source(marker[1], marker[2])
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", i+1, err))
			continue
		}
		var open []string
		if i+1 < len(lines) {
			open = fence.FindStringSubmatch(lines[i+1])
		}
		if open == nil {
			errs = append(errs, fmt.Errorf("line %d: no fenced block follows the marker", i+1))
			continue
		}
		end := blockEnd(lines, i+1, open[1])
		if end == len(lines) {
			errs = append(errs, fmt.Errorf("line %d: the block has no end", i+2))
			continue
		}
		out.WriteString(lines[i+1] + content + lines[end])
		i = end
	}
	return out.String(), errors.Join(errs...)
}

// blockEnd returns the index of the line that ends a block, or len(lines).
func blockEnd(lines []string, open int, ticks string) int {
	for i := open + 1; i < len(lines); i++ {
		if strings.TrimSpace(lines[i]) == ticks {
			return i
		}
	}
	return len(lines)
}

// cut returns the lines between the markers of a snippet, less the indentation
// that all of them share and the blank lines at both ends.
func cut(source, snippet string) (string, error) {
	begin := regexp.MustCompile(`(?m)^.*\bsnippet:` + regexp.QuoteMeta(snippet) + `([ \t].*)?$\n`)
	places := begin.FindAllStringIndex(source, -1)
	if len(places) != 1 {
		return "", fmt.Errorf("snippet %s: found %d times", snippet, len(places))
	}
	rest := source[places[0][1]:]
	end := regexp.MustCompile(`(?m)^.*\bsnippet:`).FindStringIndex(rest)
	if end == nil || !strings.Contains(rest[end[0]:end[1]+len("end")], "snippet:end") {
		return "", fmt.Errorf("snippet %s: has no end", snippet)
	}
	lines := strings.Split(strings.Trim(rest[:end[0]], "\n"), "\n")
	indent := ""
	for i, line := range lines {
		if strings.TrimSpace(line) == "" {
			continue
		}
		own := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		if i == 0 {
			indent = own
		}
		for !strings.HasPrefix(own, indent) {
			indent = indent[:len(indent)-1]
		}
	}
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, indent)
		if strings.TrimSpace(line) == "" {
			lines[i] = ""
		}
	}
	return strings.Join(lines, "\n") + "\n", nil
}

func TestSnippetsAreCutOutOfSources(t *testing.T) {
	const source = "a\n  # snippet:one\n\n  b\n\n    c\n\n  # snippet:end\n// snippet:two\nd\n// snippet:end\n// snippet:open\ne\n"
	tests := []struct{ snippet, want, err string }{
		{"one", "b\n\n  c\n", ""},
		{"two", "d\n", ""},
		{"open", "", "has no end"},
		{"on", "", "found 0 times"},
	}
	for _, test := range tests {
		got, err := cut(source, test.snippet)
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%s: got %q, %v", test.snippet, got, err)
		}
	}
}

func TestBlocksAreReplacedAfterMarkersAlone(t *testing.T) {
	source := func(file, snippet string) (string, error) {
		if file != "f.py" {
			return "", os.ErrNotExist
		}
		return snippet + "\n", nil
	}
	tests := []struct{ name, document, want, err string }{
		{"replaced", "x\n<!-- snippet:f.py#new -->\n```python\nold\nold\n```\ny\n", "x\n<!-- snippet:f.py#new -->\n```python\nnew\n```\ny\n", ""},
		{"empty block", "<!-- snippet:f.py#new -->\n```sh\n```\n", "<!-- snippet:f.py#new -->\n```sh\nnew\n```\n", ""},
		{"other blocks stay", "```sh\n<!-- snippet:f.py#new -->\n```\n", "```sh\n<!-- snippet:f.py#new -->\n```\n", ""},
		{"unmarked code", "```go\nx\n```\n", "", "without a snippet marker"},
		{"no block", "<!-- snippet:f.py#new -->\n\n```sh\n```\n", "", "no fenced block follows"},
		{"no end", "<!-- snippet:f.py#new -->\n```sh\nx\n", "", "has no end"},
		{"no file", "<!-- snippet:g.py#new -->\n```sh\n```\n", "", "not exist"},
	}
	for _, test := range tests {
		got, err := withSnippets(test.document, source)
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: error %v", test.name, err)
			}
		case err != nil || got != test.want:
			t.Errorf("%s: got %q, %v", test.name, got, err)
		}
	}
}
