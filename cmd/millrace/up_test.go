package main

import (
	"errors"
	"strings"
	"testing"

	"millrace/internal/settings"
)

func TestUpRefusesWrongCalls(t *testing.T) {
	key := []string{"MILLRACE_LLM_OPENAI_API_KEY=k"}
	tests := []struct {
		args []string
		env  []string
		err  string
	}{
		{[]string{"--real-llm"}, key, "belong to --demo"},
		{[]string{"--demo", "--real-llm"}, nil, "no provider is set"},
		{[]string{"--demo", "--real-llm"}, key, "MILLRACE_LLM_MODEL: missing"},
		{nil, append(key, "MILLRACE_HANDLER=agent"), "MILLRACE_LLM_MODEL: missing"},
		{[]string{"--demo", "--conversations", "0"}, nil, "--conversations 0: want 1 or more"},
		{[]string{"--demo", "--conversations", "-3"}, nil, "--conversations -3: want 1 or more"},
		{[]string{"--llm-rpm", "-5"}, nil, "--llm-rpm -5: want"},
		{[]string{"--llm-latency", "-5s"}, nil, "--llm-latency -5s: want"},
		{[]string{"--data", ""}, nil, "--data is empty"},
		{[]string{"--demo", "--input", ""}, nil, "--input is empty"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			got := call(t, test.env, "", append([]string{"up"}, test.args...)...)
			if got.code != exitInvalid || !strings.Contains(got.err, test.err) {
				t.Errorf("code %d, want %d; error %q, want %q", got.code, exitInvalid, got.err, test.err)
			}
		})
	}
}

func TestDemoAsksTheSimulatedLLMUnlessToldOtherwise(t *testing.T) {
	paid := []string{"MILLRACE_LLM_OPENAI_API_KEY=k", "MILLRACE_LLM_MODEL=m", "MILLRACE_HANDLER=agent"}
	tests := map[string]struct {
		env       []string
		flags     upFlags
		providers int
		invalid   bool
	}{
		"demo":                      {paid, upFlags{demo: true}, 0, false},
		"demo with a real provider": {paid, upFlags{demo: true, realLLM: true}, 1, false},
		"no demo":                   {paid, upFlags{}, 1, false},
		"demo without a model":      {[]string{paid[0], paid[2]}, upFlags{demo: true}, 0, false},
		"no model to ask":           {[]string{paid[0], paid[2]}, upFlags{demo: true, realLLM: true}, 1, true},
		"no agent, no model":        {paid[:1], upFlags{}, 1, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := settings.Load(test.env, settings.RoleUp)
			if err != nil {
				t.Fatal(err)
			}
			err = chooseLLM(&s, &test.flags)
			var invalid *settings.InvalidError
			if errors.As(err, &invalid) != test.invalid || len(s.LLMProviders) != test.providers {
				t.Errorf("%d providers, want %d; error %v", len(s.LLMProviders), test.providers, err)
			}
		})
	}
}
