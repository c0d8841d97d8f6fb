package ratelimit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func contains(err error, want string) bool {
	return err != nil && strings.Contains(err.Error(), want)
}

const validLimits = `
limits:
  - account: openai
    model: gpt-5-mini
    requests_per_minute: 6000
    tokens_per_minute: 2000000
  - account: openai
    tenant: "*"
    priority: batch
    concurrency: 5
    burst: 5s
`

func TestLimitsFileIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limits.yaml")
	if err := os.WriteFile(path, []byte(validLimits), 0o600); err != nil {
		t.Fatal(err)
	}
	ls, err := LoadLimits(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(ls) != 2 || ls[0].TokensPerMinute != 2_000_000 || ls[1].Tenant != Each || ls[1].Burst != 5*time.Second {
		t.Fatalf("read %+v", ls)
	}
	if ls, err := ParseLimits([]byte(`{"limits":[{"account":"a","concurrency":1}]}`)); err != nil || len(ls) != 1 {
		t.Fatalf("JSON: %+v, %v", ls, err)
	}
	if _, err := LoadLimits(path + ".missing"); !contains(err, "limits.yaml.missing") {
		t.Fatalf("got %v, want the path in the error", err)
	}
}

func TestBadLimitsAreNamedWithTheirPlace(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"empty":          {"", "empty"},
		"not a mapping":  {"- a", "line 1"},
		"unknown key":    {"limits:\n  - account: a\n    rpm: 5\n", "line 3: field rpm not found"},
		"repeated key":   {"limits:\n  - account: a\n    account: b\n", "line 3"},
		"not a number":   {"limits:\n  - account: a\n    concurrency: many\n", "line 3"},
		"no account":     {"limits:\n\n  - concurrency: 1\n", "line 3: account: missing"},
		"nothing":        {"limits:\n  - account: a\n", "line 2: it limits nothing"},
		"negative":       {"limits:\n  - account: a\n    requests_per_minute: -1\n", "line 2: requests_per_minute -1"},
		"huge":           {"limits:\n  - account: a\n    tokens_per_minute: 9000000000000000\n", "tokens_per_minute"},
		"same scope":     {"limits:\n  - account: a\n    concurrency: 1\n  - account: a\n    concurrency: 2\n", "line 4: the same scope as line 2"},
		"long burst":     {"limits:\n  - account: a\n    concurrency: 1\n    burst: 2m\n", "burst 2m"},
		"bad priority":   {"limits:\n  - account: a\n    concurrency: 1\n    priority: Very High\n", "priority"},
		"two documents":  {"limits: []\n---\nlimits: []\n", "more than one"},
		"broken YAML":    {"limits: [", "line 1"},
		"unknown at top": {"limit: []\n", "field limit not found"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseLimits([]byte(c.content)); !contains(err, c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func FuzzParseLimits(f *testing.F) {
	f.Add([]byte(validLimits))
	f.Add([]byte("limits: [{account: a, concurrency: 1}]"))
	f.Fuzz(func(t *testing.T, content []byte) {
		ls, err := ParseLimits(content)
		if err == nil && ls.Validate() != nil {
			t.Fatalf("accepted limits that do not validate: %v", ls.Validate())
		}
	})
}
