package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"millrace/internal/settings"
)

func TestCancellationIsToldFromWhatWentWrong(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, dialErr := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", "127.0.0.1:1")
	stopped := fmt.Errorf("demo: %w", context.Canceled)
	tests := map[string]struct {
		err  error
		want bool
	}{
		"cancelled":           {stopped, true},
		"a dial cut short":    {fmt.Errorf("open store: %w", dialErr), true},
		"several":             {errors.Join(stopped, fmt.Errorf("up: %w", errors.Join(stopped, stopped))), true},
		"one that is not":     {errors.Join(stopped, errors.New("postgres was killed")), false},
		"deep inside":         {fmt.Errorf("up: %w", errors.Join(stopped, errors.New("disk full"))), false},
		"another error":       {errors.New("broken"), false},
		"two in one sentence": {fmt.Errorf("%w (%w)", stopped, errors.New("no file")), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := cancelled(test.err); got != test.want {
				t.Errorf("%v: got %v, want %v", test.err, got, test.want)
			}
		})
	}
}

func TestBannerTellsWhereAndToWhomTheAPIIsOpen(t *testing.T) {
	tests := []struct{ auth, listens, call, access string }{
		{"off", "127.0.0.1:8080", "127.0.0.1:8080", "no authentication, on 127.0.0.1:8080"},
		{"off", "[::1]:8080", "[::1]:8080", "no authentication, on [::1]:8080"},
		{
			"trust-network", "[::]:41093", "127.0.0.1:41093",
			"authentication trust-network: whoever reaches the API may use it, on all addresses of this machine, port 41093",
		},
		{"trust-network", "192.0.2.1:80", "192.0.2.1:80", "authentication trust-network: whoever reaches the API may use it, on 192.0.2.1:80"},
	}
	for _, test := range tests {
		if got := reachable(test.listens); got != test.call {
			t.Errorf("%s: call %s, want %s", test.listens, got, test.call)
		}
		if got := access(test.auth, test.listens); got != test.access {
			t.Errorf("%s on %s: got %q, want %q", test.auth, test.listens, got, test.access)
		}
	}
}

func TestProviderIsNamedWithoutItsSecrets(t *testing.T) {
	s := settings.Settings{
		LLMModel:     "m",
		LLMProviders: []settings.LLMProvider{{Name: "openai", BaseURL: "https://user:secret@llm.example.com/v1?key=secret", APIKey: "secret"}},
	}
	if got, want := describeLLM(&s), "openai at llm.example.com, model m"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := describeLLM(&settings.Settings{}); got != "simulated" {
		t.Errorf("no provider: %q", got)
	}
}

func TestConsequencesAreLeftOutOfAnError(t *testing.T) {
	stopped := fmt.Errorf("demo: %w", context.Canceled)
	full := fmt.Errorf("embedded services: %w", syscall.ENOSPC)
	broken := errors.New("embedded services: postgres was killed")
	tests := map[string]struct {
		err  error
		want string
	}{
		"nothing":            {nil, "<nil>"},
		"cut short":          {errors.Join(broken, errors.Join(stopped)), broken.Error()},
		"interrupted only":   {errors.Join(stopped, stopped), stopped.Error() + "\n" + stopped.Error()},
		"said again":         {errors.Join(errors.Join(fmt.Errorf("up: %w", broken)), broken), "up: " + broken.Error()},
		"a full disk":        {errors.Join(full, errors.Join(stopped, fmt.Errorf("close: %w", syscall.ENOSPC))), full.Error()},
		"another one":        {errors.Join(full, broken), full.Error() + "\n" + broken.Error()},
		"words around a few": {fmt.Errorf("%w (%w)", broken, stopped), broken.Error() + " (" + stopped.Error() + ")"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprint(causes(test.err)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
