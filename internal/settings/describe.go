package settings

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"millrace"
)

// Setting is one setting, for people to read.
type Setting struct {
	Name    string `json:"name"`
	Meaning string `json:"meaning"`
	// Default is what an unset variable means.
	Default string `json:"default"`
	// Value is what it is now, masked if secret.
	Value string `json:"value"`
	// Set says that the environment sets it.
	Set    bool `json:"set"`
	Secret bool `json:"secret,omitempty"`
}

// Describe lists all settings with their values in s, which came from environ.
// The variables of providers are those that are set, or, in their place, what
// they look like.
func Describe(s Settings, environ []string) []Setting {
	env := environment(environ)
	var all []Setting
	for _, f := range fields() {
		_, direct := env[f.name]
		_, file := env[f.name+"_FILE"]
		meaning := f.desc
		if f.oneOf != nil {
			meaning += " (" + strings.Join(f.oneOf, ", ") + ")"
		}
		all = append(all, Setting{
			Name: Prefix + f.name, Meaning: meaning, Default: cmp.Or(f.shown, f.fallback),
			Value: text(reflect.ValueOf(s).Field(f.index)), Set: direct || f.secret && file, Secret: f.secret,
		})
		if f.name == "LLM_MODEL" {
			all = append(all, describeProviders(s.LLMProviders)...)
		}
	}
	return all
}

func describeProviders(providers []LLMProvider) []Setting {
	if len(providers) == 0 {
		return slices.Clone(providerVariables)
	}
	var all []Setting
	for _, p := range providers {
		for i, value := range []string{text(reflect.ValueOf(p.BaseURL)), p.APIKey.String(), p.Kind} {
			one := providerVariables[i]
			one.Name = strings.Replace(one.Name, "<NAME>", strings.ToUpper(p.Name), 1)
			one.Meaning = strings.Replace(one.Meaning, " <NAME>", " "+p.Name, 1)
			one.Value, one.Set = value, true
			all = append(all, one)
		}
	}
	return all
}

func text(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case []string:
		return strings.Join(value, ",")
	case []millrace.Priority:
		words := make([]string, len(value))
		for i, p := range value {
			words[i] = string(p)
		}
		return strings.Join(words, ",")
	case Reserved:
		if len(value) == 0 {
			return "none"
		}
		var pairs []string
		for _, p := range slices.Sorted(maps.Keys(value)) {
			pairs = append(pairs, fmt.Sprintf("%s=%d", p, value[p]))
		}
		return strings.Join(pairs, ",")
	case TypeTimeouts:
		var pairs []string
		for _, taskType := range slices.Sorted(maps.Keys(value)) {
			pairs = append(pairs, taskType+"="+value[taskType].String())
		}
		return strings.Join(pairs, ",")
	case string:
		// A URL may carry a password or a key even where none is expected.
		if strings.Contains(value, "://") {
			return MaskURL(value)
		}
	}
	return fmt.Sprint(v.Interface())
}
