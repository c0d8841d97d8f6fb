package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"millrace"
)

// LoadRules reads classification rules from a YAML or JSON file:
//
//	rules:
//	  - name: large-documents
//	    when: size > 100000
//	    priority: batch
//
// Priorities are those that exist, highest first. The error lists everything
// that is wrong, each with the file, the rule, the line and the column.
func LoadRules(path string, priorities []millrace.Priority) (*Rules, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load rules: %w", err)
	}
	defer f.Close() //nolint:errcheck // it is only read
	data, err := io.ReadAll(io.LimitReader(f, maxRulesBytes+1))
	if err != nil {
		return nil, fmt.Errorf("load rules: %w", err)
	}
	return ParseRules(path, data, priorities)
}

// ParseRules is [LoadRules] for a file that is read already; name stands for it
// in errors.
func ParseRules(name string, data []byte, priorities []millrace.Priority) (*Rules, error) {
	p := rulesParser{file: name, data: data, priorities: priorities}
	rules, err := p.parse()
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	return rules, nil
}

type rulesParser struct {
	file       string
	data       []byte
	priorities []millrace.Priority
	env        *cel.Env
	errs       []error
}

func (p *rulesParser) fail(n *yaml.Node, rule, format string, args ...any) {
	p.failAt(n.Line, n.Column, rule, format, args...)
}

func (p *rulesParser) failAt(line, column int, rule, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if rule != "" {
		what = fmt.Sprintf("rule %q: %s", clip(rule), what)
	}
	p.errs = append(p.errs, fmt.Errorf("%s:%d:%d: %s", p.file, line, column, what))
}

func (p *rulesParser) parse() (*Rules, error) {
	if len(p.data) > maxRulesBytes {
		return nil, fmt.Errorf("%s: more than %d bytes", p.file, maxRulesBytes)
	}
	var err error
	if p.env, err = newEnv(); err != nil {
		return nil, err
	}
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(p.data))
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: empty; want a list named rules", p.file)
		}
		return nil, fmt.Errorf("%s: %s", p.file, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	rules := &Rules{
		priorities: slices.Clone(p.priorities),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "millrace_ingest_rule_errors_total",
			Help: "Classification rules that failed at run time and so did not match.",
		}, []string{"rule"}),
	}
	for key, value := range p.mapping(doc.Content[0], "", "the file") {
		if key.Value != "rules" {
			p.fail(key, "", "unknown field %q; the only one is rules", clip(key.Value))
			continue
		}
		rules.rules = p.list(value)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		p.errs = append(p.errs, fmt.Errorf("%s: more than one document", p.file))
	}
	if len(rules.rules) == 0 && len(p.errs) == 0 {
		p.fail(doc.Content[0], "", "no rules; want a list named rules")
	}
	return rules, errors.Join(p.errs...)
}

// mapping yields the keys and values of a mapping and fails on what is none.
func (p *rulesParser) mapping(n *yaml.Node, rule, what string) func(yield func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		if n.Kind != yaml.MappingNode {
			p.fail(n, rule, "%s: want a mapping", what)
			return
		}
		seen := make(map[string]bool)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if seen[k.Value] {
				p.fail(k, rule, "%s: given twice", clip(k.Value))
				continue
			}
			seen[k.Value] = true
			if !yield(k, n.Content[i+1]) {
				return
			}
		}
	}
}

func (p *rulesParser) list(n *yaml.Node) []rule {
	if n.Kind != yaml.SequenceNode {
		p.fail(n, "", "rules: want a list")
		return nil
	}
	if len(n.Content) > maxRules {
		p.fail(n, "", "%d rules, at most %d", len(n.Content), maxRules)
		return nil
	}
	var rules []rule
	names := make(map[string]bool)
	for i, item := range n.Content {
		r := p.rule(item, i)
		if r.name != "" && names[r.name] {
			p.fail(item, r.name, "the name is taken by an earlier rule")
		}
		names[r.name] = true
		rules = append(rules, r)
	}
	return rules
}

func (p *rulesParser) rule(n *yaml.Node, i int) rule {
	var r rule
	var when *yaml.Node
	// The name first, so that errors of the other fields can carry it.
	label := "#" + itoa(i+1)
	if n.Kind == yaml.MappingNode {
		for k := 0; k+1 < len(n.Content); k += 2 {
			if v := n.Content[k+1]; n.Content[k].Value == "name" && v.Kind == yaml.ScalarNode && v.Value != "" {
				r.name, label = v.Value, v.Value
			}
		}
	}
	bad := len(p.errs)
	for key, value := range p.mapping(n, label, "the rule") {
		// A plain true is a YAML boolean and a fine expression.
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
			p.fail(value, label, "%s: want a string", clip(key.Value))
			continue
		}
		switch key.Value {
		case "name":
		case "when":
			when = value
		case "priority":
			r.priority = millrace.Priority(value.Value)
			if !slices.Contains(p.priorities, r.priority) {
				p.fail(value, label, "unknown priority %q; want one of %s", clip(value.Value), joinPriorities(p.priorities))
			}
		default:
			p.fail(key, label, "unknown field %q; the fields are name, when, priority", clip(key.Value))
		}
	}
	if len(p.errs) == bad {
		switch {
		case r.name == "":
			p.fail(n, label, "name: missing")
		case when == nil:
			p.fail(n, label, "when: missing")
		case r.priority == "":
			p.fail(n, label, "priority: missing")
		}
	}
	if when != nil {
		r.program = p.compile(when, label)
	}
	return r
}

func (p *rulesParser) compile(n *yaml.Node, label string) cel.Program {
	if len(n.Value) > maxExpressionBytes {
		p.fail(n, label, "when: %d bytes, at most %d", len(n.Value), maxExpressionBytes)
		return nil
	}
	ast, issues := p.env.Compile(n.Value)
	if issues.Err() != nil {
		for _, e := range issues.Errors() {
			line, column := p.place(n, e.Location.Line(), e.Location.Column())
			p.failAt(line, column, label, "when: %s", e.Message)
		}
		return nil
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		p.fail(n, label, "when: want a condition that is true or false, this one is a %s", ast.OutputType())
		return nil
	}
	program, err := p.env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxRuleCost))
	if err != nil {
		p.fail(n, label, "when: %v", err)
		return nil
	}
	return program
}

// place turns a line (from 1) and column (from 0) of an expression into those
// of the file. An expression folded or wrapped over several lines has lost
// where its lines began: then it is where the expression begins.
func (p *rulesParser) place(n *yaml.Node, line, column int) (int, int) {
	line = max(line, 1)
	switch n.Style { //nolint:exhaustive // the other styles stand on one line
	case yaml.LiteralStyle:
		// The text begins on the line after the bar, indented as its first line.
		lines := bytes.Split(p.data, []byte{'\n'})
		at := n.Line + line
		if at > len(lines) || n.Line >= len(lines) {
			return n.Line, n.Column
		}
		first := lines[n.Line]
		return at, len(first) - len(bytes.TrimLeft(first, " ")) + column + 1
	case yaml.FoldedStyle:
		return n.Line, n.Column
	case yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle:
		column++
	}
	if line > 1 {
		return n.Line, n.Column
	}
	return n.Line, n.Column + column
}
