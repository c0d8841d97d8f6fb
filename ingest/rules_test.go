package ingest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace"
	"millrace/ingest"
)

func parseRules(t testing.TB, yaml string) *ingest.Rules {
	t.Helper()
	rules, err := ingest.ParseRules("rules.yaml", []byte(yaml), millrace.DefaultPriorities())
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestFirstMatchingRuleDecides(t *testing.T) {
	rules := parseRules(t, `
rules:
  - name: failing
    when: attributes.absent == "x"
    priority: high
  - name: large
    when: size > 1000
    priority: batch
  - name: urgent
    when: deadline_in < duration("1m")
    priority: high
  - name: before-2001
    when: deadline < timestamp("2001-01-01T00:00:00Z")
    priority: high
  - name: gold
    when: tenant == "gold" && !has_deadline
    priority: high
  - name: web chat
    when: 'type.startsWith("chat.") && attributes[?"channel"].orValue("") == "web"'
    priority: high
  - name: nightly
    when: conversation.matches("^nightly-[0-9]+$") || "bulk" in attributes
    priority: batch
  - name: no-high-for-tests
    when: priority == "high" && tenant == "test"
    priority: normal
`)
	now := time.Now()
	for name, c := range map[string]struct {
		req  ingest.Request
		want millrace.Priority
	}{
		"nothing matches":         {ingest.Request{}, ""},
		"no match, wish":          {ingest.Request{Priority: "batch"}, ""},
		"large":                   {ingest.Request{Size: 1001, Tenant: "gold"}, "batch"},
		"large lowers a wish":     {ingest.Request{Size: 1001, Priority: "high"}, "batch"},
		"bound itself":            {ingest.Request{Size: 1000}, ""},
		"urgent":                  {ingest.Request{Deadline: now.Add(time.Second)}, "high"},
		"deadline far away":       {ingest.Request{Deadline: now.Add(time.Hour), Tenant: "gold"}, ""},
		"gold":                    {ingest.Request{Tenant: "gold"}, "high"},
		"a wish is never raised":  {ingest.Request{Tenant: "gold", Priority: "batch"}, "batch"},
		"web chat":                {ingest.Request{Type: "chat.message", Attributes: map[string]string{"channel": "web"}}, "high"},
		"chat of another channel": {ingest.Request{Type: "chat.message", Attributes: map[string]string{"channel": "sms"}}, ""},
		"chat without channel":    {ingest.Request{Type: "chat.message"}, ""},
		"nightly":                 {ingest.Request{Conversation: "nightly-7"}, "batch"},
		"bulk":                    {ingest.Request{Attributes: map[string]string{"bulk": "1"}}, "batch"},
		"test with a high wish":   {ingest.Request{Tenant: "test", Priority: "high"}, "normal"},
		"test with a lower wish":  {ingest.Request{Tenant: "test", Priority: "batch"}, ""},
	} {
		c.req.Now = now
		got, err := rules.Classify(t.Context(), &c.req)
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, c.want)
		}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(rules)
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetCounter().GetValue() != 16 || families[0].GetMetric()[0].GetLabel()[0].GetValue() != "failing" {
		t.Errorf("run-time errors: %v, %v", families, err)
	}
}

func TestCostlyRuleDoesNotMatch(t *testing.T) {
	rules := parseRules(t, `{"rules":[{"name":"loops","priority":"high","when":"attributes.all(a, attributes.all(b, attributes.all(c, attributes.all(d, attributes.all(e, a + b + c + d + e != '')))))"}]}`)
	req := ingest.Request{Attributes: map[string]string{}}
	for _, r := range "abcdefghijklmnopqrstuvwxyz" {
		req.Attributes[string(r)] = "x"
	}
	began := time.Now()
	if got, err := rules.Classify(t.Context(), &req); got != "" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestRulesErrorsSayWhere(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"empty":               {"", []string{"rules.yaml: empty"}},
		"not YAML":            {"rules: [", []string{"rules.yaml: line 1"}},
		"no rules":            {"rules: []", []string{"rules.yaml:1:1: no rules"}},
		"a list":              {"- a", []string{"rules.yaml:1:1: the file: want a mapping"}},
		"unknown field":       {"rulez: []", []string{`rules.yaml:1:1: unknown field "rulez"`}},
		"two documents":       {"rules: [{name: a, when: 'true', priority: high}]\n---\na: 1", []string{"more than one document"}},
		"unknown rule field":  {"rules:\n  - name: a\n    if: 'true'\n    priority: high", []string{`rules.yaml:3:5: rule "a": unknown field "if"`}},
		"missing when":        {"rules:\n  - name: a\n    priority: high", []string{`rules.yaml:2:5: rule "a": when: missing`}},
		"missing name":        {"rules:\n  - when: 'true'\n    priority: high", []string{`rules.yaml:2:5: rule "#1": name: missing`}},
		"missing priority":    {"rules:\n  - name: a\n    when: 'true'", []string{`rule "a": priority: missing`}},
		"unknown priority":    {"rules:\n  - name: a\n    when: 'true'\n    priority: urgent", []string{`rules.yaml:4:15: rule "a": unknown priority "urgent"; want one of high, normal, batch`}},
		"name taken":          {"rules:\n  - {name: a, when: 'true', priority: high}\n  - {name: a, when: 'true', priority: high}", []string{`rules.yaml:3:5: rule "a": the name is taken`}},
		"given twice":         {"rules:\n  - {name: a, when: 'true', when: 'true', priority: high}", []string{"rules.yaml"}},
		"syntax error":        {"rules:\n  - name: a\n    when: type ==\n    priority: high", []string{`rules.yaml:3:18: rule "a": when: Syntax error`}},
		"type error":          {"rules:\n  - name: a\n    when: size > \"x\"\n    priority: high", []string{`rules.yaml:3:16: rule "a": when: found no matching overload`}},
		"type error, quoted":  {"rules:\n  - name: a\n    when: \"size > 'x'\"\n    priority: high", []string{`rules.yaml:3:17: rule "a"`}},
		"type error, literal": {"rules:\n  - name: a\n    when: |\n      true &&\n      size > \"x\"\n    priority: high", []string{`rules.yaml:5:12: rule "a"`}},
		"unknown variable":    {"rules:\n  - name: a\n    when: tennant == \"x\"\n    priority: high", []string{`rules.yaml:3:11: rule "a": when: undeclared reference to 'tennant'`}},
		"no condition":        {"rules:\n  - name: a\n    when: size + 1\n    priority: high", []string{`rules.yaml:3:11: rule "a": when: want a condition`}},
		"all at once":         {"rules:\n  - {name: a, when: x, priority: high}\n  - {name: b, when: y, priority: high}", []string{`rule "a"`, `rule "b"`}},
	} {
		_, err := ingest.ParseRules("rules.yaml", []byte(c.file), millrace.DefaultPriorities())
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q does not say %q", name, err, want)
			}
		}
	}
}

func TestRulesAreLoadedFromYAMLAndJSON(t *testing.T) {
	for name, content := range map[string]string{
		"rules.yaml": "rules:\n  - name: all\n    when: true\n    priority: batch\n",
		"rules.json": "{\n\t\"rules\": [\n\t\t{\"name\": \"all\", \"when\": \"true\", \"priority\": \"batch\"}\n\t]\n}\n",
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		rules, err := ingest.LoadRules(path, millrace.DefaultPriorities())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := rules.Classify(t.Context(), &ingest.Request{}); got != millrace.Batch || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := ingest.LoadRules(filepath.Join(t.TempDir(), "absent.yaml"), nil); err == nil {
		t.Error("absent file: no error")
	}
}

func TestClassifiedTaskTravelsInItsTopic(t *testing.T) {
	rules := parseRules(t, `{"rules":[{"name":"docs","when":"type == 'doc' && size > 3","priority":"batch"}]}`)
	f := start(t, func(c *ingest.Config) { c.Classifier = rules })
	for body, want := range map[string]millrace.Priority{
		`{"conversation":"c","type":"doc","payload":"long"}`:                     millrace.Batch,
		`{"conversation":"c","type":"doc","payload":"long","priority":"high"}`:   millrace.Batch,
		`{"conversation":"c","type":"doc","payload":1,"priority":"high"}`:        millrace.High,
		`{"conversation":"c","type":"chat","payload":"long"}`:                    millrace.Normal,
		`{"conversation":"c","type":"chat","payload":"long","priority":"batch"}`: millrace.Batch,
	} {
		if got := f.mustSubmit(body); got.Priority != want {
			t.Errorf("%s: priority %s, want %s", body, got.Priority, want)
		}
	}
	f.log(millrace.Batch, 3)
	f.log(millrace.High, 1)
	f.log(millrace.Normal, 1)
}
