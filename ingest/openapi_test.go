package ingest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"millrace/ingest"
)

var update = flag.Bool("update", false, "write the golden files")

func TestOpenAPIDocumentIsTheGoldenOne(t *testing.T) {
	f := start(t, nil)
	r := f.get("/openapi.json")
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.WriteFile(golden, append(r.body, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSpace(r.body), bytes.TrimSpace(want)) {
		t.Errorf("the document has changed; if that is meant, run the test with -update")
	}
	if yaml := f.get("/openapi.yaml"); !bytes.HasPrefix(yaml.body, []byte("components:")) || yaml.status != 200 {
		t.Errorf("YAML: status %d, %.40s", yaml.status, yaml.body)
	}
}

func TestOpenAPIReferencesResolve(t *testing.T) {
	f := start(t, nil)
	body := f.get("/openapi.json").body
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" || len(doc.Paths) != 6 {
		t.Errorf("version %s, %d paths", doc.OpenAPI, len(doc.Paths))
	}
	for _, ref := range regexp.MustCompile(`#/components/schemas/(\w+)`).FindAllStringSubmatch(string(body), -1) {
		if _, ok := doc.Components.Schemas[ref[1]]; !ok {
			t.Errorf("schema %s is referred to and missing", ref[1])
		}
	}
	for _, p := range ingest.ProblemTypes() {
		if !strings.Contains(string(body), p.Type) {
			t.Errorf("problem type %s is not documented", p.Type)
		}
	}
}

func TestDocsPageNeedsNoOutsideNetwork(t *testing.T) {
	f := start(t, nil)
	r := f.get("/docs")
	if r.status != 200 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") {
		t.Fatalf("status %d, %s", r.status, r.header.Get("Content-Type"))
	}
	if regexp.MustCompile(`(?i)(https?:)?//[a-z0-9.-]+\.[a-z]{2,}/|<link|<script[^>]+src|@import|url\(`).Match(r.body) {
		t.Error("the page loads something from elsewhere")
	}
	if csp := r.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q", csp)
	}
}

func TestConfigErrorsAreReportedTogether(t *testing.T) {
	_, err := ingest.New(ingest.Config{
		DefaultPriority: "urgent", MaxPayloadBytes: 3 << 20, MaxDepth: -1,
		MaxLag: nil, Priorities: nil, ProduceTimeout: -1,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"producer: missing", `default priority "urgent"`, "max payload bytes", "max depth", "produce timeout"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}
