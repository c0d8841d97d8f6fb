// Command bench runs Millrace side by side with its peers on this machine: the
// same records in one run, in turns, the median of several. "make bench-peers"
// calls it. The README beside it says what each is set to.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"millrace/internal/bench"
)

// options are the flags of a call.
type options struct {
	only     string
	records  int
	runs     int
	window   time.Duration
	millrace string
	dir      string
	json     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.only, "only", "engine", "what to compare: engine, outbox or commit")
	flag.IntVar(&o.records, "records", 0, "records of a no-op run of the engine, 2,000,000 by default, of the outbox, 400,000, or of commit, 200,000")
	flag.IntVar(&o.runs, "runs", 3, "runs of each, of which the median counts")
	flag.DurationVar(&o.window, "window", 10*time.Second, "how long a steady state is measured")
	flag.StringVar(&o.millrace, "millrace", "bin/millrace", "the binary to measure")
	flag.StringVar(&o.dir, "dir", "bench", "this module's directory")
	flag.BoolVar(&o.json, "json", false, "print one JSON object a line")
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	compare, known := map[string]struct {
		run     func(context.Context, options) (*report, error)
		records int
	}{"engine": {compareEngines, 2_000_000}, "outbox": {compareOutboxes, 400_000}, "commit": {compareCommits, 200_000}}[o.only]
	if !known || o.records < 0 || o.runs < 1 || flag.NArg() > 0 {
		return errors.New("want -only engine, outbox or commit, 1 or more runs, and records or 0 for the default")
	}
	o.records = cmp.Or(o.records, compare.records)
	report, err := compare.run(ctx, o)
	if err != nil {
		return err
	}
	if err := report.save(filepath.Join(o.dir, "results")); err != nil {
		return err
	}
	if err := report.print(o.json); err != nil {
		return err
	}
	var missed []string
	for _, r := range report.Results {
		if !r.OK {
			missed = append(missed, r.Name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("not within the bound: %s", strings.Join(missed, ", "))
	}
	return nil
}

// report is what a comparison found.
type report struct {
	What    string         `json:"what"`
	Began   time.Time      `json:"began"`
	Seconds float64        `json:"seconds"`
	CPUs    int            `json:"cpus"`
	OS      string         `json:"os"`
	Go      string         `json:"go"`
	Records int            `json:"records"`
	Results []bench.Result `json:"results"`
	// Samples are all runs of each, in order.
	Samples map[string][]float64 `json:"samples"`
}

func newReport(what string, o options) *report {
	return &report{
		What: what, Began: time.Now().UTC(), CPUs: runtime.NumCPU(), OS: runtime.GOOS + "/" + runtime.GOARCH,
		Go: runtime.Version(), Records: o.records, Samples: make(map[string][]float64),
	}
}

func (r *report) save(dir string) error {
	r.Seconds = time.Since(r.Began).Seconds()
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // figures are no secret
		return fmt.Errorf("save results: %w", err)
	}
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("save results: %w", err)
	}
	path := filepath.Join(dir, r.What+"-"+r.Began.Format("20060102T150405Z")+".json")
	if err := os.WriteFile(path, append(content, '\n'), 0o644); err != nil { //nolint:gosec // figures are no secret
		return fmt.Errorf("save results: %w", err)
	}
	fmt.Fprintln(os.Stderr, "bench: results are in", path)
	return nil
}

func (r *report) print(asJSON bool) error {
	if !asJSON {
		return bench.WriteTable(os.Stdout, r.Results)
	}
	for _, result := range r.Results {
		if err := result.WriteJSON(os.Stdout); err != nil {
			return err
		}
	}
	return nil
}
