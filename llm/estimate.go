package llm

import (
	"slices"
	"sync"
)

const (
	// unknownOutput is reserved for an answer of which nothing is known.
	unknownOutput = 1024
	// sampleSize is how many answers of a type and model are remembered.
	sampleSize = 256
	// enoughSamples is when the answers seen say more than the request's bound.
	enoughSamples = 20
	// refreshEvery is after how many answers the percentile is taken anew.
	refreshEvery = 16
	// maxSamples bounds how many pairs of type and model are told apart. The rest
	// reserve what the request bounds.
	maxSamples = 1000
)

// estimator learns how long answers are, by task type and model.
type estimator struct {
	mu      sync.Mutex
	samples map[estimateKey]*sample
}

type estimateKey struct{ taskType, provider, model string }

// sample is the newest answers' lengths.
type sample struct {
	lengths []int64 // a ring
	seen    int
	p95     int64
}

func newEstimator() *estimator {
	return &estimator{samples: make(map[estimateKey]*sample)}
}

// output estimates an answer: the 95th percentile of those seen, but not more
// than maxTokens, if that is given.
func (e *estimator) output(key estimateKey, maxTokens int64) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.samples[key]
	switch known := s != nil && s.seen >= enoughSamples; {
	case known && maxTokens > 0:
		return min(s.p95, maxTokens)
	case known:
		return s.p95
	case maxTokens > 0:
		return maxTokens
	}
	return unknownOutput
}

func (e *estimator) learn(key estimateKey, tokens int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.samples[key]
	if s == nil {
		if len(e.samples) >= maxSamples {
			return
		}
		s = &sample{}
		e.samples[key] = s
	}
	if len(s.lengths) < sampleSize {
		s.lengths = append(s.lengths, tokens)
	} else {
		s.lengths[s.seen%sampleSize] = tokens
	}
	s.seen++
	if s.seen == enoughSamples || s.seen%refreshEvery == 0 {
		sorted := slices.Sorted(slices.Values(s.lengths))
		s.p95 = sorted[(len(sorted)*95-1)/100]
	}
}

// estimateInput takes four bytes of a request for a token: a little over what
// tokenizers make of prose in JSON.
func estimateInput(requestBytes int) int64 { return int64(requestBytes+3) / 4 }
