package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// redeliveriesMetric counts, in a worker, records of tasks that were complete
// already.
const redeliveriesMetric = "millrace_consumer_redeliveries_total"

// ScrapeRedelivered returns a function for [Config.Redelivered] that adds up the
// workers' counters as their /metrics pages show them.
func ScrapeRedelivered(client *http.Client, pages ...string) func(context.Context) (int64, error) {
	return func(ctx context.Context) (int64, error) {
		var sum float64
		for _, page := range pages {
			n, err := scrape(ctx, client, page, redeliveriesMetric)
			if err != nil {
				return 0, fmt.Errorf("scrape %s: %w", page, err)
			}
			sum += n
		}
		return int64(sum), nil
	}
}

// scrape adds up the series of a metric in a page of the Prometheus text format.
func scrape(ctx context.Context, client *http.Client, page, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // read below
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s", resp.Status)
	}
	return sumSeries(resp.Body, name)
}

func sumSeries(r io.Reader, name string) (float64, error) {
	var sum float64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		// Labels may hold spaces, what follows them does not hold a brace.
		rest = rest[strings.LastIndexByte(rest, '}')+1:]
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		sum += n
	}
	return sum, lines.Err()
}
