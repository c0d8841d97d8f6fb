package app

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/ingest"
	"millrace/internal/kafka"
	"millrace/internal/settings"
)

// lagReader tells admission how far the pools are behind, per priority.
type lagReader struct {
	adm *kadm.Client
	s   *settings.Settings

	mu   sync.Mutex
	last map[millrace.Priority]lagPoint
}

type lagPoint struct {
	lag int64
	at  time.Time
}

func newLagReader(cl *kgo.Client, s *settings.Settings) *lagReader {
	return &lagReader{adm: kadm.NewClient(cl), s: s, last: make(map[millrace.Priority]lagPoint)}
}

// Lag implements [ingest.LagReader]. The drain rate is the change since the
// call before.
func (r *lagReader) Lag(ctx context.Context) (map[millrace.Priority]ingest.LagSample, error) {
	group, err := kafka.TaskLag(ctx, r.adm, r.s, r.s.TaskTopics()...)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	samples := make(map[millrace.Priority]ingest.LagSample)
	for _, p := range r.s.Priorities {
		lag, known := group.Total(r.s.TaskTopic(p))
		if !known {
			continue
		}
		sample := ingest.LagSample{Records: lag}
		if last, ok := r.last[p]; ok && now.After(last.at) {
			sample.DrainRate = float64(last.lag-lag) / now.Sub(last.at).Seconds()
		}
		r.last[p] = lagPoint{lag, now}
		samples[p] = sample
	}
	return samples, nil
}
