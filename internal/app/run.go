package app

import (
	"context"
	"errors"
	"fmt"
)

// part is something that runs for as long as its process does.
type part struct {
	name string
	run  func(ctx context.Context) error
}

// runParts starts parts in order and runs them until ctx ends or one of them
// does. Then it stops them in reverse order, each after the one before has
// returned: a part never outlives what it depends on.
func runParts(ctx context.Context, parts ...part) error {
	type ended struct {
		index int
		err   error
	}
	var (
		ends  = make(chan ended, len(parts))
		stops = make([]context.CancelFunc, len(parts))
		done  = make([]bool, len(parts))
		errs  []error
	)
	note := func(e ended) {
		done[e.index] = true
		if e.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", parts[e.index].name, e.err))
		}
	}
	for i, p := range parts {
		// The parts end when their turn comes, not all at once with ctx.
		partCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		stops[i] = cancel
		go func() { ends <- ended{i, p.run(partCtx)} }()
	}
	select {
	case <-ctx.Done():
	case e := <-ends:
		note(e)
		if e.err == nil && ctx.Err() == nil {
			errs = append(errs, fmt.Errorf("%s stopped by itself", parts[e.index].name))
		}
	}
	for i := len(parts) - 1; i >= 0; i-- {
		stops[i]()
		for !done[i] {
			note(<-ends)
		}
	}
	return errors.Join(errs...)
}
