package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/settings"
)

// dialTimeout is how long a Kafka that comes up at the same time may take.
const dialTimeout = 10 * time.Second

// Dial returns a client with [Options] and more, once a broker has answered.
func Dial(ctx context.Context, s *settings.Settings, part string, log zerolog.Logger, more ...kgo.Opt) (*kgo.Client, error) {
	opts, err := Options(s, part, log)
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	if err := WaitReady(ctx, cl, dialTimeout); err != nil {
		cl.Close()
		return nil, fmt.Errorf("kafka at %s (MILLRACE_KAFKA_BROKERS): %w", strings.Join(s.KafkaBrokers, ","), err)
	}
	return cl, nil
}

// WaitReady returns once a broker answers the client, or else after timeout with
// what the last attempt met.
func WaitReady(ctx context.Context, cl *kgo.Client, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last := errors.New("no answer")
	for {
		err := cl.Ping(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		retry := time.NewTimer(250 * time.Millisecond)
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return last
		}
	}
}
