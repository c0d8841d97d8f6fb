package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// providerThrottled asks the LLM simulator how many calls it has answered with
// 429 so far.
func providerThrottled(ctx context.Context, client *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/ledger/summary", nil)
	if err != nil {
		return 0, fmt.Errorf("ask the simulator: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask the simulator: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read below
	var summary struct {
		Statuses map[int]int64 `json:"statuses"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&summary); err != nil {
		return 0, fmt.Errorf("ask the simulator: %s: %w", resp.Status, err)
	}
	return summary.Statuses[http.StatusTooManyRequests], nil
}
