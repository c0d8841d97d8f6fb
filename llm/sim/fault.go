package sim

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// FaultHeader is the request header that asks for a fault in one call.
const FaultHeader = "Millrace-Sim-Fault"

// The kinds of faults.
const (
	// FaultServerError answers 500.
	FaultServerError = "5xx"
	// FaultHang answers nothing.
	FaultHang = "hang"
	// FaultCut ends the connection half-way through the answer.
	FaultCut = "cut"
	// FaultGarbage answers what is not JSON.
	FaultGarbage = "garbage"
)

// Faults are the shares of calls, from 0 to 1, that go wrong.
type Faults struct {
	ServerError float64
	Hang        float64
	Cut         float64
	Garbage     float64
}

func (f Faults) each() []struct {
	name string
	rate float64
} {
	return []struct {
		name string
		rate float64
	}{
		{FaultServerError, f.ServerError}, {FaultHang, f.Hang}, {FaultCut, f.Cut}, {FaultGarbage, f.Garbage},
	}
}

func (f Faults) validate() error {
	var errs []error
	var sum float64
	for _, fault := range f.each() {
		if !(fault.rate >= 0 && fault.rate <= 1) {
			errs = append(errs, fmt.Errorf("fault %s: rate %v: want 0 to 1", fault.name, fault.rate))
		}
		sum += fault.rate
	}
	if sum > 1 {
		errs = append(errs, fmt.Errorf("faults: rates sum up to %v, more than 1", sum))
	}
	return errors.Join(errs...)
}

// draw returns the fault that a call gets: the one asked for, or else the one
// that the random number in [0, 1) falls on.
func (f Faults) draw(random float64, asked string) (string, error) {
	for _, fault := range f.each() {
		if asked == fault.name {
			return asked, nil
		}
	}
	if asked != "" {
		return "", fmt.Errorf("header %s: unknown fault %q", FaultHeader, asked)
	}
	for _, fault := range f.each() {
		if random < fault.rate {
			return fault.name, nil
		}
		random -= fault.rate
	}
	return "", nil
}

// respond writes an answer. It returns false when the client went away or the
// connection is to be cut.
func (s *Simulator) respond(w http.ResponseWriter, r *http.Request, p protocol, c *call, fault string, delay time.Duration) bool {
	ctx := r.Context()
	switch fault {
	case FaultHang:
		pause(ctx, s.cfg.HangFor)
		return false
	case FaultServerError:
		if !pause(ctx, delay) {
			return false
		}
		p.writeError(w, apiError{http.StatusInternalServerError, "server_error", "The server had an error while processing your request. Sorry about that!"})
		return true
	case FaultGarbage:
		if !pause(ctx, delay) {
			return false
		}
		w.Header().Set("Content-Type", contentType(c.stream))
		_, err := fmt.Fprint(w, "data: {\"<html>502 \x00 what is this")
		return err == nil
	}
	if c.stream {
		return s.stream(w, r, p.events(c), fault == FaultCut, delay)
	}
	if !pause(ctx, delay) {
		return false
	}
	return writeJSON(w, http.StatusOK, p.answer(c), fault == FaultCut)
}

func (s *Simulator) stream(w http.ResponseWriter, r *http.Request, events []event, cut bool, delay time.Duration) bool {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", contentType(true))
	w.Header().Set("Cache-Control", "no-cache")
	between := delay / time.Duration(len(events))
	for i, e := range events {
		if cut && i == len(events)/2 {
			return false
		}
		if !pause(r.Context(), between) {
			return false
		}
		if err := e.write(w); err != nil {
			return false
		}
		if err := out.Flush(); err != nil {
			return false
		}
	}
	return true
}
