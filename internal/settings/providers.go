package settings

import (
	"cmp"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The protocols that providers speak.
const (
	KindOpenAI    = "openai"
	KindAnthropic = "anthropic"
)

// LLMProvider is one provider of LLM calls: what the variables LLM_<NAME>_…
// say together.
type LLMProvider struct {
	// Name is <NAME> in lower case.
	Name string `json:"name"`
	// Kind is the protocol: one of the Kind constants.
	Kind string `json:"kind"`
	// BaseURL is where the API is, with its version.
	BaseURL string `json:"base_url"`
	// APIKey may be empty: a server of one's own may not ask for one.
	APIKey Secret `json:"api_key"`
}

// wellKnown are the providers whose address and protocol need not be set.
var wellKnown = map[string]LLMProvider{
	"OPENAI":    {Kind: KindOpenAI, BaseURL: "https://api.openai.com/v1"},
	"ANTHROPIC": {Kind: KindAnthropic, BaseURL: "https://api.anthropic.com"},
}

const llmPrefix = "LLM_"

// providerSuffixes are the endings of the variables of a provider, longest
// first where one ends in another.
var providerSuffixes = []string{"_API_KEY_FILE", "_API_KEY", "_BASE_URL", "_KIND"}

// providerVariables describes them for people.
var providerVariables = []Setting{
	{Name: Prefix + "LLM_<NAME>_BASE_URL", Default: "that of OPENAI and ANTHROPIC", Meaning: "where the provider <NAME> is; any number of providers"},
	{Name: Prefix + "LLM_<NAME>_API_KEY", Secret: true, Meaning: "the provider's key"},
	{Name: Prefix + "LLM_<NAME>_KIND", Default: "anthropic for ANTHROPIC, else openai", Meaning: "the protocol it speaks: openai or anthropic"},
}

// providers collects the variables that name providers.
func (l *loader) providers() []LLMProvider {
	names := make(map[string]bool)
	for variable := range l.env {
		if slices.Contains(l.known, variable) {
			continue
		}
		rest, ok := strings.CutPrefix(variable, llmPrefix)
		if !ok {
			continue
		}
		for _, suffix := range providerSuffixes {
			name, ok := strings.CutSuffix(rest, suffix)
			if !ok {
				continue
			}
			l.known = append(l.known, variable)
			if !validProviderName(name) {
				l.problem(variable, "", "want a provider name of capital letters, digits and underscores in place of %q", name)
			} else {
				names[name] = true
			}
			break
		}
	}
	var all []LLMProvider
	for _, name := range slices.Sorted(maps.Keys(names)) {
		all = append(all, l.provider(name))
	}
	return all
}

func validProviderName(name string) bool {
	for _, r := range name {
		if (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' {
			return false
		}
	}
	return name != "" && name[0] != '_'
}

func (l *loader) provider(name string) LLMProvider {
	variable := llmPrefix + name
	known := wellKnown[name]
	p := LLMProvider{
		Name:    strings.ToLower(name),
		Kind:    strings.ToLower(cmp.Or(l.env[variable+"_KIND"], known.Kind, KindOpenAI)),
		BaseURL: strings.TrimRight(strings.TrimSpace(cmp.Or(l.env[variable+"_BASE_URL"], known.BaseURL)), "/"),
		APIKey:  Secret(strings.TrimSpace(l.secret(variable + "_API_KEY"))),
	}
	if p.Kind != KindOpenAI && p.Kind != KindAnthropic {
		l.problem(variable+"_KIND", strconv.Quote(p.Kind), "want %s or %s", KindOpenAI, KindAnthropic)
	}
	switch {
	case p.BaseURL == "":
		l.problem(variable+"_BASE_URL", "", "missing: want the address of the provider's API, such as https://llm.example.com/v1")
	case !isHTTP(p.BaseURL):
		l.problem(variable+"_BASE_URL", strconv.Quote(MaskURL(p.BaseURL)), "want an http:// or https:// URL")
	}
	return p
}

func isHTTP(raw string) bool {
	u, err := url.Parse(raw)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}
