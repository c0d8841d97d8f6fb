package demo

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestQuantilesAreExact(t *testing.T) {
	var values []time.Duration
	for i := 200; i > 0; i-- {
		values = append(values, time.Duration(i)*time.Millisecond)
	}
	if got, want := quantiles(values), (Quantiles{P50: 100 * time.Millisecond, P99: 198 * time.Millisecond}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	one := quantiles([]time.Duration{time.Second})
	if one.P50 != time.Second || one.P99 != time.Second {
		t.Errorf("of one value: %v", one)
	}
	if quantiles(nil) != (Quantiles{}) {
		t.Error("of no value: not zero")
	}
}

func TestProgressLineTellsRateAndWhatIsLeft(t *testing.T) {
	p := newProgress(nil, nil)
	at := func(seconds int) time.Time { return p.began.Add(time.Duration(seconds) * time.Second) }
	tests := []struct {
		name string
		s    snapshot
		at   int
		want string
	}{
		{"sending a file", snapshot{sent: 50, done: 20, total: 100, sending: true, lag: 30}, 2, "2s  sent 50/100  done 20  10/s  in flight 30  lag 30  left 8s"},
		{"lag unknown", snapshot{sent: 100, done: 60, total: 100, sending: true, lag: -1}, 4, "4s  sent 100/100  done 60  20/s  in flight 40  lag ?  left 2s"},
		{"done", snapshot{sent: 100, done: 100, total: 100}, 6, "6s  sent 100/100  done 100  20/s  in flight 0  lag 0  left 0s"},
		{"a stream", snapshot{sent: 120, done: 120, sending: true}, 7, "7s  sent 120  done 120  20/s  in flight 0  lag 0  left ?"},
	}
	for _, test := range tests {
		if got := p.line(test.s, at(test.at)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestRedeliveriesAreScraped(t *testing.T) {
	page := `# HELP millrace_consumer_redeliveries_total Records.
# TYPE millrace_consumer_redeliveries_total counter
millrace_consumer_redeliveries_total{pool="a b}"} 3
millrace_consumer_redeliveries_total 4 1700000000
millrace_consumer_redeliveries_total_other 100
`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(page))
	}))
	defer server.Close()
	count := ScrapeRedelivered(server.Client(), server.URL+"/metrics", server.URL+"/metrics")
	if got, err := count(context.Background()); err != nil || got != 14 {
		t.Errorf("got %d, %v, want 14", got, err)
	}
	if _, err := ScrapeRedelivered(server.Client(), server.URL+"/nowhere")(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a page that is not there: %v", err)
	}
}
