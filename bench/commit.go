package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"millrace/internal/bench"
)

const (
	riverName   = "commit.turns/river"
	commitOurs  = "commit.turns"
	riverFactor = 0.8
	// turnsFloor holds whatever River does.
	turnsFloor = 12_000.0
)

// compareCommits runs whole turns, and River's no-op jobs on the same PostgreSQL.
func compareCommits(ctx context.Context, o options) (*report, error) {
	services, err := findServices(os.Environ())
	if err != nil {
		return nil, err
	}
	peer, err := buildModule(ctx, filepath.Join(o.dir, "river"), "river")
	if err != nil {
		return nil, fmt.Errorf("build River: %w", err)
	}
	theirs := riverRuns{binary: peer, services: services, records: o.records}
	ours := millraceRuns{binary: o.millrace, services: services}
	r := newReport("commit", o)
	err = takeTurns(ctx, []contestant{
		{riverName, theirs.rate},
		{commitOurs, ours.commitRate(o.records)},
	}, o.runs, r.Samples)
	if err != nil {
		return nil, err
	}
	r.Results = judgeCommits(r.Samples)
	return r, nil
}

func judgeCommits(samples map[string][]float64) []bench.Result {
	peer := median(samples[riverName])
	return []bench.Result{
		bench.Plain(riverName, peer, "jobs/s"),
		bench.AtLeast(commitOurs, median(samples[commitOurs]), "turns/s", max(riverFactor*peer, turnsFloor)),
	}
}

// riverRuns measures River, each time with a schema of its own.
type riverRuns struct {
	binary   string
	services services
	records  int
}

func (r riverRuns) rate(ctx context.Context) (float64, error) {
	out, err := output(ctx, r.services.environ, r.binary, "-records", strconv.Itoa(r.records))
	if err != nil {
		return 0, err
	}
	return measuredRate(out)
}

// measuredRate reads what a peer's program has printed.
func measuredRate(out []byte) (float64, error) {
	var measured struct {
		Rate float64 `json:"rate"`
	}
	if err := json.Unmarshal(out, &measured); err != nil {
		return 0, fmt.Errorf("read result %q: %w", out, err)
	}
	return measured.Rate, nil
}

// buildModule builds a peer with our harness around it, from a module of its own:
// what it depends on is not to choose versions for us.
func buildModule(ctx context.Context, dir, name string) (binary string, err error) {
	if binary, err = filepath.Abs(filepath.Join(dir, "bin", name)); err != nil {
		return "", err
	}
	if out, err := output(ctx, os.Environ(), "go", "-C", dir, "build", "-o", binary, "."); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
}
