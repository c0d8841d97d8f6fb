package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// log notes what happens, in order.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (t *log) add(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, fmt.Sprintf(format, args...))
}

// until returns a part that runs until it is stopped.
func (t *log) until(name string, err error) part {
	return part{name, func(ctx context.Context) error {
		<-ctx.Done()
		t.add("%s stopped", name)
		return err
	}}
}

func TestPartsStopInReverseOrderOneAfterTheOther(t *testing.T) {
	var tr log
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := runParts(ctx, tr.until("store", nil), tr.until("relay", errors.New("late")), tr.until("engine", nil))
	if got, want := fmt.Sprint(tr.lines), "[engine stopped relay stopped store stopped]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if err == nil || err.Error() != "relay: late" {
		t.Errorf("error %v", err)
	}
}

func TestAPartThatFailsStopsTheOthers(t *testing.T) {
	var tr log
	err := runParts(t.Context(), tr.until("store", nil),
		part{"engine", func(context.Context) error { return errors.New("broken") }}, tr.until("http", nil))
	if got, want := fmt.Sprint(tr.lines), "[http stopped store stopped]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
	if err == nil || err.Error() != "engine: broken" {
		t.Errorf("error %v", err)
	}
}

func TestAPartThatEndsByItselfIsAnError(t *testing.T) {
	var tr log
	err := runParts(t.Context(), tr.until("store", nil), part{"engine", func(context.Context) error { return nil }})
	if err == nil || !strings.Contains(err.Error(), "engine stopped by itself") {
		t.Errorf("error %v", err)
	}
}
