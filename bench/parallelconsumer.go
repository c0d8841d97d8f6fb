package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// parallelConsumer is Confluent's Parallel Consumer with our harness around it.
type parallelConsumer struct {
	classpath string
}

// buildParallelConsumer has Maven fetch and build it.
func buildParallelConsumer(ctx context.Context, dir string) (parallelConsumer, error) {
	for _, program := range []string{"mvn", "java"} {
		if _, err := exec.LookPath(program); err != nil {
			return parallelConsumer{}, fmt.Errorf("the Parallel Consumer is built with Maven and Java 17 (Debian: apt-get install maven openjdk-17-jdk-headless): %w", err)
		}
	}
	project := filepath.Join(dir, "parallel-consumer")
	out, err := output(ctx, os.Environ(), "mvn", "-q", "-B", "-Dstyle.color=never", "-f", filepath.Join(project, "pom.xml"),
		"compile", "dependency:build-classpath", "-Dmdep.outputFile=target/classpath")
	if err != nil {
		return parallelConsumer{}, fmt.Errorf("build the Parallel Consumer: %w\n%s", err, out)
	}
	libraries, err := os.ReadFile(filepath.Join(project, "target", "classpath"))
	if err != nil {
		return parallelConsumer{}, fmt.Errorf("build the Parallel Consumer: %w", err)
	}
	return parallelConsumer{filepath.Join(project, "target", "classes") + ":" + strings.TrimSpace(string(libraries))}, nil
}

// parallelConsumerRuns measures it, each time in a group that has read nothing
// yet.
type parallelConsumerRuns struct {
	built    parallelConsumer
	services services
	topic    string
	group    string
	records  int
}

// maxPollRecords is ten times the client's default, which is too little to keep
// 1,000 slots busy with no-ops.
const maxPollRecords = 5000

func (p parallelConsumerRuns) noop(slots int) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) { return p.rate(ctx, slots) }
}

// work returns the share, in per cent, of what the slots could do.
func (p parallelConsumerRuns) work(slots int, work, warmUp, window time.Duration) func(context.Context) (float64, error) {
	return func(ctx context.Context) (float64, error) {
		rate, err := p.rate(ctx, slots, "work-ms="+millis(work), "warm-up-ms="+millis(warmUp), "window-ms="+millis(window))
		return 100 * rate * work.Seconds() / float64(slots), err
	}
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func (p parallelConsumerRuns) rate(ctx context.Context, slots int, more ...string) (float64, error) {
	args := append([]string{
		"-Xms1g", "-Xmx4g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", p.built.classpath, "millrace.bench.ParallelConsumer",
		"brokers=" + p.services.brokers, "topic=" + p.topic, "records=" + strconv.Itoa(p.records), "slots=" + strconv.Itoa(slots),
		"group=" + p.group + strconv.FormatUint(rand.Uint64(), 36), //nolint:gosec // no secret
		"max-poll-records=" + strconv.Itoa(maxPollRecords),
	}, more...)
	out, err := output(ctx, p.services.environ, "java", args...)
	if err != nil {
		return 0, err
	}
	var measured struct {
		Rate float64 `json:"rate"`
	}
	if err := json.Unmarshal(out, &measured); err != nil {
		return 0, fmt.Errorf("read result %q: %w", out, err)
	}
	if measured.Rate <= 0 {
		return 0, errors.New("no records")
	}
	return measured.Rate, nil
}
