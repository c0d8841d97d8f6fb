package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Result is one measured figure.
type Result struct {
	// Name is the benchmark and what it measured, such as "engine.noop".
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Bound is what the value is held against. Nil: nothing is promised.
	Bound *float64 `json:"bound"`
	// Ratio is Value divided by Bound.
	Ratio *float64 `json:"ratio"`
	OK    bool     `json:"ok"`
}

// Plain returns a figure without a bound.
func Plain(name string, value float64, unit string) Result {
	return Result{Name: name, Value: value, Unit: unit, OK: true}
}

// AtLeast returns a figure that should not be below its bound.
func AtLeast(name string, value float64, unit string, bound float64) Result {
	return bounded(name, value, unit, bound, value >= bound)
}

// AtMost returns a figure that should not be above its bound.
func AtMost(name string, value float64, unit string, bound float64) Result {
	return bounded(name, value, unit, bound, value <= bound)
}

func bounded(name string, value float64, unit string, bound float64, ok bool) Result {
	r := Result{Name: name, Value: value, Unit: unit, Bound: &bound, OK: ok}
	if bound != 0 { // JSON has no infinity
		ratio := value / bound
		r.Ratio = &ratio
	}
	return r
}

// WriteJSON writes a result as one line of JSON.
func (r Result) WriteJSON(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// WriteTable writes results for people.
func WriteTable(w io.Writer, results []Result) error {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.AppendHeader(table.Row{"Name", "Measured", "Unit", "Bound", "Ratio", "OK"})
	for _, r := range results {
		row := table.Row{r.Name, figure(r.Value), r.Unit, "", "", "yes"}
		if r.Bound != nil {
			row[3] = figure(*r.Bound)
		}
		if r.Ratio != nil {
			row[4] = strconv.FormatFloat(*r.Ratio, 'f', 2, 64)
		}
		if !r.OK {
			row[5] = "NO"
		}
		t.AppendRow(row)
	}
	t.SetColumnConfigs([]table.ColumnConfig{
		{Number: 2, Align: text.AlignRight}, {Number: 4, Align: text.AlignRight}, {Number: 5, Align: text.AlignRight},
	})
	_, err := fmt.Fprintln(w, t.Render())
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// figure shows as many digits as say something.
func figure(v float64) string {
	switch {
	case v >= 1000 || v <= -1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}
