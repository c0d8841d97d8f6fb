package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"time"

	"millrace/internal/bench"
)

// warmUp passes between the first record and the window of a steady state, as in
// Millrace's own measurement.
const warmUp = 3 * time.Second

// contestant is one of those that run in turns.
type contestant struct {
	name string
	run  func(context.Context) (float64, error)
}

// The contestants' names are those of their figures.
const (
	pollName     = "engine.poll/franz-go"
	noopPC       = "engine.noop/parallel-consumer"
	noopPC100    = "engine.noop100/parallel-consumer"
	noopOurs     = "engine.noop"
	noopOurs100  = "engine.noop100"
	workPC       = "engine.work100ms/parallel-consumer"
	workOurs     = "engine.work100ms"
	hotOurs      = "engine.hot"
	slots        = 1000
	fewSlots     = 100
	peerFactor   = 5.0
	workPerSlot  = 100 * time.Millisecond
	workBound    = 98
	hotBound     = 95
	recordsRate  = "records/s"
	shareOfIdeal = "% of ideal"
)

// compareEngines runs keyed consumers over the same records.
func compareEngines(ctx context.Context, o options) (_ *report, err error) {
	services, err := findServices(os.Environ())
	if err != nil {
		return nil, err
	}
	peer, err := buildParallelConsumer(ctx, o.dir)
	if err != nil {
		return nil, err
	}
	prefix := fmt.Sprintf("bench-peers-%08x.", rand.Uint32()) //nolint:gosec // no secret
	defer func() { err = errors.Join(err, services.clean(ctx, prefix)) }()

	ours := millraceRuns{binary: o.millrace, services: services, args: []string{
		"--topics", prefix, "--records", strconv.Itoa(o.records), "--window", o.window.String(),
	}}
	theirs := parallelConsumerRuns{built: peer, services: services, topic: prefix + "tasks.normal", group: prefix, records: o.records}
	contestants := []contestant{
		{pollName, ours.figure("poll", slots)}, // comes first: it fills the topic
		{noopPC, theirs.noop(slots)},
		{noopOurs, ours.figure("noop", slots)},
		{noopPC100, theirs.noop(fewSlots)},
		{noopOurs100, ours.figure("noop", fewSlots)},
	}
	if need := bench.SteadyRecords(slots, o.window); o.records >= need {
		contestants = append(contestants,
			contestant{workPC, theirs.work(slots, workPerSlot, warmUp, o.window)},
			contestant{workOurs, ours.figure("work100ms", slots)},
			contestant{hotOurs, ours.figure("hot", slots)},
		)
	} else {
		fmt.Fprintf(os.Stderr, "bench: %d records do not last for a window of %s, which needs %d: steady states are left out\n", o.records, o.window, need)
	}
	r := newReport("engine", o)
	if err := takeTurns(ctx, contestants, o.runs, r.Samples); err != nil {
		return nil, err
	}
	r.Results = judgeEngines(r.Samples)
	return r, nil
}

// takeTurns runs all contestants once, then all again: what disturbs the machine
// for a while then disturbs all of them.
func takeTurns(ctx context.Context, contestants []contestant, runs int, samples map[string][]float64) error {
	for i := range runs {
		for _, c := range contestants {
			value, err := c.run(ctx)
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			samples[c.name] = append(samples[c.name], value)
			fmt.Fprintf(os.Stderr, "bench: run %d of %d: %s: %.1f\n", i+1, runs, c.name, value)
		}
	}
	return nil
}

func judgeEngines(samples map[string][]float64) []bench.Result {
	peer := median(samples[noopPC])
	peer100 := median(samples[noopPC100])
	results := []bench.Result{
		bench.Plain(pollName, median(samples[pollName]), recordsRate),
		bench.Plain(noopPC, peer, recordsRate),
		bench.AtLeast(noopOurs, median(samples[noopOurs]), recordsRate, peerFactor*peer),
		bench.Plain(noopPC100, peer100, recordsRate),
		bench.AtLeast(noopOurs100, median(samples[noopOurs100]), recordsRate, peerFactor*peer100),
	}
	if len(samples[workOurs]) == 0 {
		return results
	}
	return append(results,
		bench.Plain(workPC, median(samples[workPC]), shareOfIdeal),
		bench.AtLeast(workOurs, median(samples[workOurs]), shareOfIdeal, workBound),
		bench.AtLeast(hotOurs, median(samples[hotOurs]), shareOfIdeal, hotBound),
	)
}

// median returns the middle of the samples, or of an even number the mean of the
// two in the middle.
func median(samples []float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
