package sim

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// Defaults of [Config].
const (
	DefaultAnswerTokens = 40
	DefaultLedgerSize   = 100_000
	DefaultHangFor      = 10 * time.Minute
)

const maxBody = 32 << 20

// Config configures a [Simulator]. The zero value answers at once, to anybody,
// without limits and faults.
type Config struct {
	// Seed decides on answers, latencies and faults.
	Seed uint64
	// Limits hold for each API key on its own.
	Limits Limits
	// Keys are the API keys that are accepted, with their own limits. Nil: any key
	// is, under Limits.
	Keys map[string]Limits
	// AnswerTokens is the mean length of an answer. 0 means [DefaultAnswerTokens].
	AnswerTokens int
	// Latency is how long answers take.
	Latency Latency
	// Faults are what goes wrong, and how often.
	Faults Faults
	// HangFor ends a hanging call. 0 means [DefaultHangFor].
	HangFor time.Duration
	// LedgerSize is how many calls the ledger keeps. 0 means [DefaultLedgerSize].
	LedgerSize int
}

// Latency is the distribution of the time that an answer takes: normal with
// Mean and Jitter as standard deviation, but not negative, and PerToken for each
// token of the answer on top.
type Latency struct {
	Mean     time.Duration
	Jitter   time.Duration
	PerToken time.Duration
}

// Simulator plays a provider.
type Simulator struct {
	cfg    Config
	ledger *ledger

	mu     sync.Mutex
	random *rand.Rand
	faults Faults
	keys   map[string]*account
}

// New returns a simulator that has not been called yet.
func New(cfg Config) (*Simulator, error) {
	var errs []error
	errs = append(errs, cfg.Limits.validate("limits"), cfg.Faults.validate())
	for key, limits := range cfg.Keys {
		errs = append(errs, limits.validate("limits of key "+KeyID(key)))
	}
	for name, n := range map[string]int64{
		"answer tokens": int64(cfg.AnswerTokens), "ledger size": int64(cfg.LedgerSize),
		"latency mean": int64(cfg.Latency.Mean), "latency jitter": int64(cfg.Latency.Jitter),
		"latency per token": int64(cfg.Latency.PerToken), "hang for": int64(cfg.HangFor),
	} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("%s: negative", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("simulator: %w", err)
	}
	if cfg.AnswerTokens == 0 {
		cfg.AnswerTokens = DefaultAnswerTokens
	}
	if cfg.LedgerSize == 0 {
		cfg.LedgerSize = DefaultLedgerSize
	}
	if cfg.HangFor == 0 {
		cfg.HangFor = DefaultHangFor
	}
	s := &Simulator{cfg: cfg, ledger: newLedger(cfg.LedgerSize), faults: cfg.Faults}
	s.Reset()
	return s, nil
}

// Reset forgets all calls and what they used, and starts the randomness anew.
// Calls under way keep their place in the concurrency of the past.
func (s *Simulator) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.random = rand.New(rand.NewPCG(s.cfg.Seed, 0)) //nolint:gosec // meant to be repeatable
	s.keys = make(map[string]*account)
	s.ledger.reset()
}

// SetFaults changes what goes wrong from now on.
func (s *Simulator) SetFaults(f Faults) error {
	if err := f.validate(); err != nil {
		return fmt.Errorf("set faults: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
	return nil
}

// Handler returns the simulator's HTTP interface.
func (s *Simulator) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.serve(openAI{}))
	mux.HandleFunc("POST /v1/messages", s.serve(anthropic{}))
	mux.HandleFunc("GET /v1/models", s.serveModels)
	mux.HandleFunc("GET /ledger", s.serveLedger)
	mux.HandleFunc("GET /ledger/summary", s.serveSummary)
	mux.HandleFunc("POST /reset", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// protocol is what the providers' APIs differ in.
type protocol interface {
	kind() string
	key(r *http.Request) string
	parse(body []byte) (call, error)
	writeError(w http.ResponseWriter, e apiError)
	writeLimits(h http.Header, st standing)
	answer(c *call) any
	events(c *call) []event
}

// call is a request in the terms that the protocols share.
type call struct {
	id        string
	model     string
	stream    bool
	wantUsage bool // OpenAI streams tell the usage on request only
	input     int64
	output    int64
	maxTokens int64 // 0: not given
	question  string
	pieces    []string // of the answer, one for each token or so
	truncated bool
	created   time.Time
}

// apiError is a refusal, in the terms that the protocols share.
type apiError struct {
	status  int
	code    string // OpenAI's error type; Anthropic's follows from the status
	message string
}

func (s *Simulator) serve(p protocol) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			p.writeError(w, apiError{http.StatusBadRequest, "invalid_request_error", "the body could not be read: " + err.Error()})
			return
		}
		hash := sha256.Sum256(body)
		entry := Call{
			At: time.Now(), Kind: p.kind(), Key: KeyID(p.key(r)),
			Request: hex.EncodeToString(hash[:8]), Status: http.StatusOK,
		}
		refuse := func(e apiError) {
			entry.Status = e.status
			s.ledger.add(entry)
			p.writeError(w, e)
		}
		limits, ok := s.limitsOf(p.key(r))
		if !ok {
			refuse(apiError{http.StatusUnauthorized, "authentication_error", "the API key is missing or not known to the simulator"})
			return
		}
		c, err := p.parse(body)
		entry.Model, entry.Stream = c.model, c.stream
		if err != nil {
			refuse(apiError{http.StatusBadRequest, "invalid_request_error", err.Error()})
			return
		}
		c.id, c.created = hex.EncodeToString(hash[8:20]), entry.At
		s.compose(&c, hash)

		fault, delay, err := s.decide(r, c.output)
		if err != nil {
			refuse(apiError{http.StatusBadRequest, "invalid_request_error", err.Error()})
			return
		}
		acct, st, refusal := s.admit(p.key(r), limits, &c)
		entry.At = st.now
		p.writeLimits(w.Header(), st)
		if refusal != nil {
			refuse(*refusal)
			return
		}
		defer s.leave(acct)
		entry.Fault, entry.InputTokens, entry.OutputTokens = fault, c.input, c.output
		if fault == FaultServerError {
			entry.Status, entry.OutputTokens = http.StatusInternalServerError, 0
		}
		seq := s.ledger.add(entry)
		finished := s.respond(w, r, p, &c, fault, delay)
		s.ledger.end(seq, entry.Status, time.Since(entry.At), finished)
		if !finished {
			// Ends the connection without an end of the body.
			panic(http.ErrAbortHandler)
		}
	}
}

func (s *Simulator) limitsOf(key string) (Limits, bool) {
	if key == "" {
		return Limits{}, false
	}
	if s.cfg.Keys == nil {
		return s.cfg.Limits, true
	}
	limits, ok := s.cfg.Keys[key]
	return limits, ok
}

// decide draws a call's fault and latency.
func (s *Simulator) decide(r *http.Request, output int64) (fault string, delay time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fault, err = s.faults.draw(s.random.Float64(), r.Header.Get(FaultHeader))
	l := s.cfg.Latency
	delay = l.Mean + time.Duration(s.random.NormFloat64()*float64(l.Jitter))
	return fault, max(delay, 0) + time.Duration(output)*l.PerToken, err
}

// KeyID returns what the ledger shows of an API key: enough to tell keys apart,
// nothing to call with.
func KeyID(key string) string {
	if key == "" {
		return ""
	}
	hash := sha256.Sum256([]byte(key))
	return "key-" + hex.EncodeToString(hash[:4])
}
