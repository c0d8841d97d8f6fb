//go:build integration

package main

import (
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"millrace/internal/bench"
	"millrace/internal/settings"
	"millrace/internal/testenv"
)

func smokeEnv(t *testing.T) bench.Env {
	t.Helper()
	s, err := settings.Load([]string{
		"MILLRACE_KAFKA_BROKERS=" + testenv.Kafka(t)[0],
		"MILLRACE_REDIS_URL=" + testenv.Redis(t),
		"MILLRACE_POSTGRES_URL=" + testenv.Postgres(t),
	}, settings.RoleWorker)
	if err != nil {
		t.Fatal(err)
	}
	return bench.Env{Settings: s, Progress: os.Stderr, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)}
}

// The figures of a small run say nothing; that there are some says that the
// benchmarks still run.
func TestSmallRunOfTheEngine(t *testing.T) {
	figures := make(map[string]float64)
	err := bench.Engine(t.Context(), bench.EngineConfig{
		Env:  smokeEnv(t),
		Only: []string{"poll", "noop"}, Records: 20_000, Window: time.Second,
	}, func(r bench.Result) error {
		figures[r.Name] = r.Value
		return r.WriteJSON(os.Stderr)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"engine.poll", "engine.noop"} {
		if figures[name] <= 0 {
			t.Errorf("%s: %v, want a rate", name, figures[name])
		}
	}
}

func TestSmallRunOfTheOutbox(t *testing.T) {
	figures := make(map[string]float64)
	err := bench.Outbox(t.Context(), bench.OutboxConfig{
		Env:     smokeEnv(t),
		Records: 20_000, Window: time.Second, PinXmin: 3 * time.Second,
	}, func(r bench.Result) error {
		figures[r.Name] = r.Value
		return r.WriteJSON(os.Stderr)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"outbox.rate", "outbox.latency.p99", "outbox.latency.at-least-once.p99", "outbox.pin"} {
		if figures[name] <= 0 {
			t.Errorf("%s: %v, want a figure", name, figures[name])
		}
	}
}

func TestSmallRunOfTheCommit(t *testing.T) {
	figures := make(map[string]float64)
	err := bench.Commit(t.Context(), bench.CommitConfig{
		Env:  smokeEnv(t),
		Only: []string{"turns"}, Records: 5000,
	}, func(r bench.Result) error {
		figures[r.Name] = r.Value
		return r.WriteJSON(os.Stderr)
	})
	if err != nil {
		t.Fatal(err)
	}
	if figures["commit.turns"] <= 0 {
		t.Errorf("commit.turns: %v, want a rate", figures["commit.turns"])
	}
}
