package sim

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Call is an entry of the ledger: what arrived, and what became of it.
type Call struct {
	// Seq counts the calls from 1.
	Seq int64 `json:"seq"`
	// At is the time of arrival.
	At time.Time `json:"at"`
	// Kind is the protocol: openai or anthropic.
	Kind string `json:"kind"`
	// Key stands for the API key: key- and the first 8 hex digits of its SHA-256.
	Key   string `json:"key"`
	Model string `json:"model"`
	// Request identifies the body: the first 16 hex digits of its SHA-256.
	Request string `json:"request"`
	Stream  bool   `json:"stream"`
	// Status is the HTTP status of the answer. A call that hung has 200 and a fault.
	Status       int    `json:"status"`
	Fault        string `json:"fault,omitempty"`
	InputTokens  int64  `json:"input_tokens"`
	OutputTokens int64  `json:"output_tokens"`
	// Milliseconds is how long an admitted call took. Ended says that it has.
	Milliseconds int64 `json:"ms"`
	Ended        bool  `json:"ended"`
	// Complete says that the whole answer was written.
	Complete bool `json:"complete"`
}

// Summary counts all calls since the start or the last reset.
type Summary struct {
	Calls int64 `json:"calls"`
	// Complete counts the calls with a whole answer of status 200.
	Complete     int64            `json:"complete"`
	Statuses     map[int]int64    `json:"statuses"`
	Faults       map[string]int64 `json:"faults"`
	InputTokens  int64            `json:"input_tokens"`
	OutputTokens int64            `json:"output_tokens"`
	First        time.Time        `json:"first,omitzero"`
	Last         time.Time        `json:"last,omitzero"`
	// Peaks are by API key, as [Call.Key] shows it.
	Peaks map[string]Peaks `json:"peaks"`
}

// ledger keeps the newest calls in a ring, and sums of all.
type ledger struct {
	mu   sync.Mutex
	ring []Call // Seq n at (n-1) mod its capacity
	size int
	last int64
	// base is the number of the last call before the reset, so that the end of an
	// older call finds nothing.
	base int64
	sum  Summary
}

func newLedger(size int) *ledger { return &ledger{size: size} }

func (l *ledger) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring = nil
	l.base = l.last
	l.sum = Summary{Statuses: make(map[int]int64), Faults: make(map[string]int64)}
}

func (l *ledger) add(c Call) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	c.Seq = l.last
	if i := l.index(c.Seq); i < len(l.ring) {
		l.ring[i] = c
	} else {
		l.ring = append(l.ring, c)
	}
	l.sum.Calls++
	l.sum.Statuses[c.Status]++
	if c.Fault != "" {
		l.sum.Faults[c.Fault]++
	}
	l.sum.InputTokens += c.InputTokens
	l.sum.OutputTokens += c.OutputTokens
	if l.sum.First.IsZero() {
		l.sum.First = c.At
	}
	l.sum.Last = c.At
	return c.Seq
}

func (l *ledger) index(seq int64) int { return int((seq - l.base - 1) % int64(l.size)) }

func (l *ledger) end(seq int64, status int, took time.Duration, complete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq <= l.base {
		return
	}
	if complete && status == http.StatusOK {
		l.sum.Complete++
	}
	if c := &l.ring[l.index(seq)]; c.Seq == seq {
		c.Ended, c.Complete, c.Milliseconds = true, complete, took.Milliseconds()
	}
}

// after returns the calls after a number that are still kept, oldest first.
func (l *ledger) after(seq int64) []Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := max(seq, l.base, l.last-int64(l.size))
	calls := make([]Call, 0, max(l.last-from, 0))
	for n := from + 1; n <= l.last; n++ {
		calls = append(calls, l.ring[l.index(n)])
	}
	return calls
}

func (l *ledger) summary() Summary {
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := l.sum
	sum.Statuses, sum.Faults = maps.Clone(sum.Statuses), maps.Clone(sum.Faults)
	return sum
}

// Ledger returns the calls after a number that are still kept, oldest first.
func (s *Simulator) Ledger(after int64) []Call { return s.ledger.after(after) }

// Summary returns counts of all calls and the peaks of each key.
func (s *Simulator) Summary() Summary {
	sum := s.ledger.summary()
	sum.Peaks = make(map[string]Peaks)
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, a := range s.keys {
		sum.Peaks[KeyID(key)] = a.peaks
	}
	return sum
}

func (s *Simulator) serveLedger(w http.ResponseWriter, r *http.Request) {
	var after int64
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseInt(text, 10, 64); err != nil || after < 0 {
			writeJSON(w, http.StatusBadRequest, object{"error": "after: want the seq of a call"}, false)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	encoder := json.NewEncoder(w)
	for _, c := range s.Ledger(after) {
		if encoder.Encode(c) != nil {
			return // the client is gone
		}
	}
}

func (s *Simulator) serveSummary(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Summary(), false)
}
