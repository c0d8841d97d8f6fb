package settings

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kelseyhightower/envconfig"

	"millrace"
)

// OnOff is a switch.
type OnOff bool

// Decode implements [envconfig.Decoder].
func (o *OnOff) Decode(value string) error {
	switch strings.ToLower(value) {
	case "on":
		*o = true
		return nil
	case "off":
		*o = false
		return nil
	}
	b, err := strconv.ParseBool(value)
	*o = OnOff(b)
	return err
}

func (o OnOff) String() string {
	if o {
		return "on"
	}
	return "off"
}

// Reserved holds the slots that each priority keeps for itself. Nil is unset,
// empty is none.
type Reserved map[millrace.Priority]int

// Decode implements [envconfig.Decoder].
func (r *Reserved) Decode(value string) error {
	*r = Reserved{}
	if value == "none" {
		return nil
	}
	for pair := range strings.SplitSeq(value, ",") {
		name, count, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok {
			return fmt.Errorf("%q is not of the form priority=slots", pair)
		}
		priority := millrace.Priority(name)
		if _, twice := (*r)[priority]; twice {
			return fmt.Errorf("%q is there twice", name)
		}
		n, err := strconv.Atoi(count)
		if err != nil || n < 0 {
			return fmt.Errorf("%q is no number of slots", count)
		}
		(*r)[priority] = n
	}
	return nil
}

// TypeTimeouts holds the longest turn of task types that differ from the rest.
type TypeTimeouts map[string]time.Duration

const (
	minTurn = 100 * time.Millisecond
	maxTurn = 24 * time.Hour
)

// Decode implements [envconfig.Decoder].
func (t *TypeTimeouts) Decode(value string) error {
	*t = TypeTimeouts{}
	for pair := range strings.SplitSeq(value, ",") {
		// A type may hold an equals sign; a duration does not.
		at := strings.LastIndexByte(pair, '=')
		if at < 0 {
			return fmt.Errorf("%q is not of the form type=duration", pair)
		}
		taskType := strings.TrimSpace(pair[:at])
		if err := (&millrace.Task{ID: "-", Type: taskType}).Validate(); err != nil || taskType == "" {
			return fmt.Errorf("%q is no task type", taskType)
		}
		if _, twice := (*t)[taskType]; twice {
			return fmt.Errorf("%q is there twice", taskType)
		}
		d, err := time.ParseDuration(strings.TrimSpace(pair[at+1:]))
		if err != nil || d < minTurn || d > maxTurn {
			return fmt.Errorf("%q is no duration from %s to %s", pair[at+1:], minTurn, maxTurn)
		}
		(*t)[taskType] = d
	}
	return nil
}

// field is what the tags say of one setting.
type field struct {
	index    int
	name     string // without the prefix
	kind     reflect.Type
	desc     string
	fallback string
	shown    string
	oneOf    []string
	min, max string
	file     bool
	secret   bool
}

// fields returns the settings in the order of the struct.
var fields = sync.OnceValue(func() []field {
	var all []field
	t := reflect.TypeFor[Settings]()
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get
		if tag("ignored") == "true" {
			continue
		}
		one := field{
			index: i, name: tag("envconfig"), kind: f.Type, desc: tag("desc"),
			fallback: tag("default"), shown: tag("shown"), min: tag("min"), max: tag("max"),
			file: tag("file") == "true", secret: tag("secret") == "true",
		}
		if options := tag("oneof"); options != "" {
			one.oneOf = strings.Split(options, "|")
		}
		all = append(all, one)
	}
	return all
})

// defaultFor returns the value of the unset setting, as text.
func (f field) defaultFor(role Role) string {
	return cmp.Or(roleDefaults[role][f.name], f.fallback)
}

type loader struct {
	env      map[string]string
	role     Role
	problems []Problem
	known    []string
}

func (l *loader) problem(name, value, format string, args ...any) {
	l.problems = append(l.problems, Problem{Name: Prefix + name, Value: value, Reason: fmt.Sprintf(format, args...)})
}

// load sets the field's value in the settings.
func (l *loader) load(f field, target reflect.Value) {
	l.known = append(l.known, f.name)
	value, set := l.env[f.name], true
	if f.secret {
		l.known = append(l.known, f.name+"_FILE")
		value = l.secret(f.name)
	}
	if value == "" {
		value, set = f.defaultFor(l.role), false
	}
	if value == "" {
		return
	}
	value = strings.TrimSpace(value)
	if err := f.decode(value, target); err != nil {
		shown := strconv.Quote(value)
		if f.secret {
			shown = mask(value)
		}
		l.problem(f.name, shown, "%v", err)
		return
	}
	if f.file && set {
		if err := readable(value); err != nil {
			l.problem(f.name, strconv.Quote(value), "%v", err)
		}
	}
}

// decode converts value to the field's type and checks it against the tags.
func (f field) decode(value string, target reflect.Value) error {
	for _, option := range f.oneOf {
		if strings.EqualFold(option, value) {
			target.SetString(option)
			return nil
		}
	}
	if f.oneOf != nil {
		return fmt.Errorf("want %s", list(f.oneOf, "or"))
	}
	if f.kind.Kind() == reflect.String {
		target.SetString(value)
		return nil
	}
	decoded, err := convert(value, f.kind)
	if err != nil {
		return f.want(err)
	}
	target.Set(decoded)
	if f.min == "" {
		return nil
	}
	low, err := convert(f.min, f.kind)
	if err != nil {
		return err
	}
	high, err := convert(f.max, f.kind)
	if err != nil {
		return err
	}
	if decoded.Int() < low.Int() || decoded.Int() > high.Int() {
		return f.want(nil)
	}
	return nil
}

// want says what the field takes. The cause is told only where it adds to that.
func (f field) want(cause error) error {
	switch f.kind {
	case reflect.TypeFor[int]():
		return fmt.Errorf("want a whole number from %s to %s", f.min, f.max)
	case reflect.TypeFor[time.Duration]():
		return fmt.Errorf("want a duration such as 30s or 5m, from %s to %s", f.min, f.max)
	case reflect.TypeFor[OnOff]():
		return fmt.Errorf("want on or off")
	case reflect.TypeFor[TypeTimeouts]():
		return fmt.Errorf("%w: want the longest turn by task type, such as summarize=30s,research=20m", cause)
	case reflect.TypeFor[Reserved]():
		return fmt.Errorf("%w: want slots by priority, such as high=10,normal=5, or none", cause)
	}
	return cause
}

// convert has envconfig convert one value. Its Process takes the environment of
// the process alone and stops at the first error; a struct of one field whose
// default is the value gives its conversions without either. No variable can
// have the name "=".
func convert(value string, kind reflect.Type) (reflect.Value, error) {
	spec := reflect.New(reflect.StructOf([]reflect.StructField{{
		Name: "Value",
		Type: kind,
		Tag:  reflect.StructTag(`envconfig:"=" default:` + strconv.Quote(value)),
	}}))
	if err := envconfig.Process("", spec.Interface()); err != nil {
		// A ParseError does not unwrap.
		if parse := (*envconfig.ParseError)(nil); errors.As(err, &parse) {
			err = parse.Err
		}
		return reflect.Value{}, err
	}
	return spec.Elem().Field(0), nil
}

func readable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("want a readable file: %w", err)
	}
	if info.IsDir() {
		return fmt.Errorf("want a file, it is a folder")
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("want a readable file: %w", err)
	}
	return file.Close()
}

// list joins words for a sentence: "a, b or c".
func list(words []string, last string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}
