package ingest

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
	"github.com/prometheus/client_golang/prometheus"

	"millrace"
)

// Bounds on rules, so that a file by mistake or malice costs little.
const (
	maxRulesBytes      = 1 << 20
	maxRules           = 1_000
	maxExpressionBytes = 8 << 10
	// maxRuleCost bounds one evaluation, in CEL's cost units: string functions
	// over the largest attributes stay far below, nested loops do not.
	maxRuleCost = 100_000
)

// Rules classifies by CEL expressions in order: the first that is true decides.
//
// A priority that the sender wishes for is a wish that rules may lower, never
// raise: a rule that matches with a higher one leaves the wish as it is. When
// none matches, Rules has no opinion.
//
// An expression sees
//
//	type          string      the task's type
//	tenant        string      its tenant, "" if none
//	conversation  string      its conversation, "" if none
//	size          int         the payload's bytes
//	priority      string      what the sender wishes for, "" if nothing
//	has_deadline  bool        whether it has a deadline
//	deadline      timestamp   the deadline, the end of the year 9999 if none
//	deadline_in   duration    the time left until then, some 292 years if none
//	attributes    map         its attributes, string to string
//
// and CEL's standard functions, strings extension and optional types. Reading
// an attribute that the task lacks is an error at run time; write
// `"name" in attributes && …` or `attributes[?"name"].orValue("")`. A rule that
// fails at run time does not match; the failure is counted in
// millrace_ingest_rule_errors_total, as Rules is a [prometheus.Collector].
type Rules struct {
	priorities []millrace.Priority
	rules      []rule
	errors     *prometheus.CounterVec
}

type rule struct {
	name     string
	priority millrace.Priority
	program  cel.Program
}

var (
	_ Classifier           = (*Rules)(nil)
	_ prometheus.Collector = (*Rules)(nil)
)

// Describe implements [prometheus.Collector].
func (r *Rules) Describe(ch chan<- *prometheus.Desc) { r.errors.Describe(ch) }

// Collect implements [prometheus.Collector].
func (r *Rules) Collect(ch chan<- prometheus.Metric) { r.errors.Collect(ch) }

// Classify returns the priority of the first rule that matches.
func (r *Rules) Classify(_ context.Context, req *Request) (millrace.Priority, error) {
	vars := &activation{req: req}
	for i := range r.rules {
		out, _, err := r.rules[i].program.Eval(vars)
		if err != nil {
			r.errors.WithLabelValues(r.rules[i].name).Inc()
			continue
		}
		if out == types.True {
			return r.lower(req.Priority, r.rules[i].priority), nil
		}
	}
	return "", nil
}

// lower returns the lower one of a wish, which may be empty, and a decision.
func (r *Rules) lower(wish, decided millrace.Priority) millrace.Priority {
	if slices.Index(r.priorities, wish) > slices.Index(r.priorities, decided) {
		return wish
	}
	return decided
}

func newEnv() (*cel.Env, error) {
	env, err := cel.NewEnv(
		cel.Variable("type", cel.StringType),
		cel.Variable("tenant", cel.StringType),
		cel.Variable("conversation", cel.StringType),
		cel.Variable("size", cel.IntType),
		cel.Variable("priority", cel.StringType),
		cel.Variable("has_deadline", cel.BoolType),
		cel.Variable("deadline", cel.TimestampType),
		cel.Variable("deadline_in", cel.DurationType),
		cel.Variable("attributes", cel.MapType(cel.StringType, cel.StringType)),
		cel.OptionalTypes(),
		ext.Strings(),
	)
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	return env, nil
}

// activation gives a rule the values of one request as it asks for them.
type activation struct{ req *Request }

var endOfTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "type":
		return a.req.Type, true
	case "tenant":
		return a.req.Tenant, true
	case "conversation":
		return a.req.Conversation, true
	case "size":
		return int64(a.req.Size), true
	case "priority":
		return string(a.req.Priority), true
	case "has_deadline":
		return !a.req.Deadline.IsZero(), true
	case "deadline":
		if a.req.Deadline.IsZero() {
			return endOfTime, true
		}
		return a.req.Deadline, true
	case "deadline_in":
		if a.req.Deadline.IsZero() {
			return time.Duration(math.MaxInt64), true
		}
		return a.req.Deadline.Sub(a.req.Now), true
	case "attributes":
		if a.req.Attributes == nil {
			return map[string]string{}, true
		}
		return a.req.Attributes, true
	}
	return nil, false
}

func (a *activation) Parent() interpreter.Activation { return nil }
