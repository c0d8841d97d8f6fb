package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// suite is what one command measures, in the order it runs.
type suite[R any] []struct {
	name string
	run  func(R, context.Context) error
}

func (s suite[R]) names() []string {
	names := make([]string, len(s))
	for i, b := range s {
		names[i] = b.name
	}
	return names
}

// check reports the names of only that are none of the suite's.
func (s suite[R]) check(only []string) (errs []error) {
	names := s.names()
	for _, name := range only {
		if !slices.Contains(names, name) {
			errs = append(errs, fmt.Errorf("no benchmark %q: want some of %s", name, strings.Join(names, ", ")))
		}
	}
	return errs
}

// run runs those that only names, or all when it names none.
func (s suite[R]) run(ctx context.Context, r R, what string, only []string) error {
	for _, b := range s {
		if len(only) > 0 && !slices.Contains(only, b.name) {
			continue
		}
		if err := b.run(r, ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("%s.%s was interrupted", what, b.name)
			}
			return fmt.Errorf("%s.%s: %w", what, b.name, err)
		}
	}
	return nil
}
