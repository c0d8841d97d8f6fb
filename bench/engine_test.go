package main

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		samples []float64
		want    float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{3, 1}, 2},
		{[]float64{9, 1, 2}, 2},
	} {
		if got := median(tc.samples); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.samples, got, tc.want)
		}
	}
}

func TestContestantsRunInTurns(t *testing.T) {
	var order []string
	note := func(name string) contestant {
		return contestant{name, func(context.Context) (float64, error) {
			order = append(order, name)
			return float64(len(order)), nil
		}}
	}
	samples := make(map[string][]float64)
	if err := takeTurns(t.Context(), []contestant{note("a"), note("b")}, 2, samples); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if !slices.Equal(samples["b"], []float64{2, 4}) {
		t.Errorf("samples of b: %v", samples["b"])
	}
}

func TestFailedContestantEndsTheComparison(t *testing.T) {
	broken := errors.New("broken")
	err := takeTurns(t.Context(), []contestant{{"a", func(context.Context) (float64, error) { return 0, broken }}}, 1, map[string][]float64{})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}

func TestMillraceIsHeldAgainstThePeersOfTheSameRun(t *testing.T) {
	results := judgeEngines(map[string][]float64{
		noopPC: {100, 300, 200}, noopOurs: {999, 1001, 1000}, noopPC100: {100}, noopOurs100: {499}, workOurs: {98}, hotOurs: {94},
	})
	ok := make(map[string]bool)
	for _, r := range results {
		ok[r.Name] = r.OK
		if r.Name == noopOurs && (*r.Bound != 1000 || *r.Ratio != 1) {
			t.Errorf("bound %v and ratio %v of no-ops, want 1000 and 1", *r.Bound, *r.Ratio)
		}
	}
	for name, want := range map[string]bool{noopOurs: true, noopOurs100: false, workOurs: true, hotOurs: false, noopPC: true} {
		if ok[name] != want {
			t.Errorf("%s is ok: %v, want %v", name, ok[name], want)
		}
	}
}

func TestServicesThatWereStartedStandInForAnInstallation(t *testing.T) {
	s, err := findServices([]string{
		"MILLRACE_KAFKA_BROKERS=127.0.0.1:1", "MILLRACE_TEST_KAFKA_BROKERS=127.0.0.1:2",
		"MILLRACE_TEST_REDIS_URL=redis://127.0.0.1:3", "MILLRACE_TEST_POSTGRES_URL=postgres://127.0.0.1:4/x",
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.brokers != "127.0.0.1:1" {
		t.Errorf("brokers %s, want those of the installation", s.brokers)
	}
	for _, want := range []string{"MILLRACE_REDIS_URL=redis://127.0.0.1:3", "MILLRACE_POSTGRES_URL=postgres://127.0.0.1:4/x"} {
		if !slices.Contains(s.environ, want) {
			t.Errorf("the environment lacks %s", want)
		}
	}
	if _, err := findServices(nil); err == nil {
		t.Error("no service is set, and no error")
	}
}

func TestOutboxIsHeldAgainstThirtyForwarders(t *testing.T) {
	for _, tc := range []struct {
		ours float64
		ok   bool
	}{{30_000, true}, {29_000, false}} {
		results := judgeOutboxes(map[string][]float64{forwarderName: {900, 1000, 5000}, outboxOurs: {1, tc.ours, 50_000}})
		if last := results[len(results)-1]; last.Name != outboxOurs || last.OK != tc.ok || *last.Bound != 30_000 {
			t.Errorf("%v a second against a median of 1,000: %+v", tc.ours, last)
		}
	}
}

func TestTurnsAreHeldAgainstRiverAndNeverAgainstLessThanThePromise(t *testing.T) {
	for _, tc := range []struct {
		river, ours, bound float64
		ok                 bool
	}{
		{20_000, 16_000, 16_000, true},
		{20_000, 15_999, 16_000, false},
		{5_000, 12_000, 12_000, true},
		{5_000, 11_999, 12_000, false},
	} {
		results := judgeCommits(map[string][]float64{riverName: {1, tc.river, 90_000}, commitOurs: {1, tc.ours, 90_000}})
		if last := results[len(results)-1]; last.Name != commitOurs || last.OK != tc.ok || *last.Bound != tc.bound {
			t.Errorf("%v turns a second against a median of %v jobs: %+v", tc.ours, tc.river, last)
		}
	}
}
