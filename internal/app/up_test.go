package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"
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
