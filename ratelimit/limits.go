package ratelimit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.yaml.in/yaml/v3"

	"millrace"
)

// Minute is what rates are stated in.
const Minute = time.Minute

// DefaultBurst is how much of a rate may be spent at once, in time.
const DefaultBurst = 10 * time.Second

// Each in place of a tenant's name gives every tenant a limit of its own.
const Each = "*"

// maxLimit keeps sums within what Lua's numbers hold exactly.
const maxLimit = int64(1) << 40

// Limit bounds what a scope may use. All limits that apply to a request hold
// at once.
type Limit struct {
	// Account is the provider's account by name. Required.
	Account string `yaml:"account"`
	// Model narrows the limit to one model. Empty: all models of the account
	// share it.
	Model string `yaml:"model"`
	// Tenant narrows the limit to one tenant, or with [Each] to every tenant on
	// its own. Empty: all tenants share it.
	Tenant string `yaml:"tenant"`
	// Priority narrows the limit to one priority. Empty: all share it.
	Priority millrace.Priority `yaml:"priority"`

	// RequestsPerMinute, and the others of this kind: 0 means no limit.
	RequestsPerMinute     int64 `yaml:"requests_per_minute"`
	InputTokensPerMinute  int64 `yaml:"input_tokens_per_minute"`
	OutputTokensPerMinute int64 `yaml:"output_tokens_per_minute"`
	// TokensPerMinute limits input and output together.
	TokensPerMinute int64 `yaml:"tokens_per_minute"`
	// Concurrency is how many requests may be under way at once. 0 means no limit.
	Concurrency int64 `yaml:"concurrency"`

	// Burst is how much of each rate may be spent at once after idling, in time
	// at that rate. 0 means [DefaultBurst]; a minute means no smoothing.
	Burst time.Duration `yaml:"burst"`
}

// Limits is the content of a limits file.
type Limits []Limit

// limitsFile is the file's form: a mapping, so that it can grow.
type limitsFile struct {
	Limits Limits `yaml:"limits"`
}

// LoadLimits reads a limits file: YAML, and therefore also JSON.
//
//	limits:
//	  - account: openai
//	    model: gpt-5-mini
//	    requests_per_minute: 6000
//	    tokens_per_minute: 2000000
//	    concurrency: 200
//	  - account: openai
//	    tenant: "*"
//	    requests_per_minute: 600
//	    burst: 5s
//
// Unknown and repeated keys are errors. Errors name file and line.
func LoadLimits(path string) (Limits, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read limits: %w", err)
	}
	limits, err := ParseLimits(content)
	if err != nil {
		return nil, fmt.Errorf("limits file %s: %w", path, err)
	}
	return limits, nil
}

// ParseLimits reads the content of a limits file. See [LoadLimits].
func ParseLimits(content []byte) (Limits, error) {
	var file limitsFile
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty: want a mapping with the key limits")
		}
		return nil, err
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	lines := limitLines(content)
	place := func(i int) string {
		if i < len(lines) {
			return fmt.Sprintf("line %d", lines[i])
		}
		return fmt.Sprintf("limit %d", i+1)
	}
	if err := file.Limits.validate(place); err != nil {
		return nil, err
	}
	return file.Limits, nil
}

// limitLines finds the line of each entry, which the strict decoding into
// structs does not give.
func limitLines(content []byte) []int {
	var root struct {
		Limits []yaml.Node `yaml:"limits"`
	}
	if yaml.Unmarshal(content, &root) != nil {
		return nil
	}
	lines := make([]int, len(root.Limits))
	for i := range root.Limits {
		lines[i] = root.Limits[i].Line
	}
	return lines
}

// Validate reports all that is wrong with the limits.
func (ls Limits) Validate() error {
	return ls.validate(func(i int) string { return fmt.Sprintf("limit %d", i+1) })
}

func (ls Limits) validate(place func(int) string) error {
	type scope struct{ account, model, tenant, priority string }
	first := make(map[scope]int, len(ls))
	var errs []error
	for i, l := range ls {
		if err := l.validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", place(i), err))
		}
		s := scope{l.Account, l.Model, l.Tenant, string(l.Priority)}
		if j, taken := first[s]; taken {
			errs = append(errs, fmt.Errorf("%s: the same scope as %s", place(i), place(j)))
		} else {
			first[s] = i
		}
	}
	return errors.Join(errs...)
}

func (l Limit) validate() error {
	var errs []error
	if l.Account == "" {
		errs = append(errs, errors.New("account: missing"))
	}
	if l.Priority != "" {
		if err := l.Priority.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	some := false
	for _, d := range dimensions {
		n := d.of(l)
		some = some || n != 0
		if n < 0 || n > maxLimit {
			errs = append(errs, fmt.Errorf("%s %d: want 1 to %d, or 0 for no limit", d.setting, n, maxLimit))
		}
	}
	if !some {
		errs = append(errs, errors.New("it limits nothing: give at least one of requests_per_minute, "+
			"input_tokens_per_minute, output_tokens_per_minute, tokens_per_minute, concurrency"))
	}
	if l.Burst < 0 || l.Burst > Minute {
		errs = append(errs, fmt.Errorf("burst %s: want at most a minute, or 0 for %s", l.Burst, DefaultBurst))
	}
	return errors.Join(errs...)
}

func (l Limit) applies(r *Request) bool {
	return l.Account == r.Account &&
		(l.Model == "" || l.Model == r.Model) &&
		(l.Tenant == "" || l.Tenant == r.Tenant || l.Tenant == Each && r.Tenant != "") &&
		(l.Priority == "" || l.Priority == r.Priority)
}
