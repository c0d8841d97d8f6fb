package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Config says what to send and where to look.
type Config struct {
	// Input is what to send: from [OpenInput] or [Generate].
	Input *Input
	// API is the base URL of the HTTP API.
	API string
	// Kafka are client options: seed brokers at least.
	Kafka []kgo.Opt
	// ResultsTopic is the full name of the results topic. Empty means
	// "millrace.results".
	ResultsTopic string
	// Group is the workers' consumer group, whose lag is shown. Empty means
	// "millrace.default".
	Group string
	// Postgres is a connection string.
	Postgres string
	// Provider says who answers LLM calls. Empty: nobody says.
	Provider string
	// Simulator is the base URL of the LLM simulator. Empty: not asked.
	Simulator string
	// Redelivered returns how many records workers have met again after their task
	// was complete, since they started. Nil: not known.
	Redelivered func(context.Context) (int64, error)
	// Senders is how many turns are posted at a time. 0 means 32.
	Senders int
	// Stall is how long to wait for one more result before judging without it. 0
	// means a minute.
	Stall time.Duration
	// Settle is how long to watch for surplus results once all are there. 0 means
	// two seconds.
	Settle time.Duration
	// GiveUp is how long one turn is sent again and again before the run fails. 0
	// means two minutes.
	GiveUp time.Duration
	// Out gets the progress. Nil: none is shown.
	Out io.Writer
}

// Demo is one run.
type Demo struct {
	cfg    Config
	prefix string
	client *http.Client
	broken atomic.Int64
}

// prefixBytes is the length of a run's prefix: "demo-", eight digits, "-".
const prefixBytes = 14

// New checks what it is given.
func New(cfg Config) (*Demo, error) {
	var errs []error
	if cfg.Input == nil {
		errs = append(errs, errors.New("input: missing"))
	}
	for _, u := range []struct{ what, url string }{{"api", cfg.API}, {"simulator", cfg.Simulator}} {
		if u.url == "" && u.what == "simulator" {
			continue
		}
		if parsed, err := url.Parse(u.url); err != nil || parsed.Host == "" || !strings.HasPrefix(parsed.Scheme, "http") {
			errs = append(errs, fmt.Errorf("%s: %q is no http URL", u.what, u.url))
		}
	}
	if len(cfg.Kafka) == 0 {
		errs = append(errs, errors.New("kafka: no options"))
	}
	if cfg.Postgres == "" {
		errs = append(errs, errors.New("postgres: missing"))
	}
	if cfg.Senders < 0 || cfg.Stall < 0 || cfg.Settle < 0 || cfg.GiveUp < 0 {
		errs = append(errs, errors.New("senders, stall, settle, give up: want 0 or more"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	or(&cfg.ResultsTopic, "millrace.results")
	or(&cfg.Group, "millrace.default")
	or(&cfg.Senders, 32)
	or(&cfg.Stall, time.Minute)
	or(&cfg.Settle, 2*time.Second)
	or(&cfg.GiveUp, 2*time.Minute)
	cfg.API, cfg.Simulator = strings.TrimRight(cfg.API, "/"), strings.TrimRight(cfg.Simulator, "/")
	if cfg.Out == nil {
		cfg.Out = io.Discard
	}
	var run [4]byte
	rand.Read(run[:])
	transport := &http.Transport{MaxIdleConnsPerHost: cfg.Senders, MaxConnsPerHost: 2 * cfg.Senders}
	return &Demo{
		cfg:    cfg,
		prefix: "demo-" + hex.EncodeToString(run[:]) + "-",
		// The time out is for an API that hangs; it answers in milliseconds.
		client: &http.Client{Transport: transport, Timeout: 30 * time.Second},
	}, nil
}

func or[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Prefix is what the ids of this run's conversations begin with.
func (d *Demo) Prefix() string { return d.prefix }

// Run sends everything, waits for the results, and judges. The error says why
// there is no report; a bad verdict is no error.
func (d *Demo) Run(ctx context.Context) (*Report, error) {
	defer d.client.CloseIdleConnections()
	results, err := openResults(ctx, d.cfg.ResultsTopic, d.cfg.Group, d.cfg.Kafka)
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	defer results.close()
	r, err := d.run(ctx, results, results.lag, postgresHistory{url: d.cfg.Postgres})
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	return r, nil
}

func (d *Demo) run(ctx context.Context, src resultSource, lag func(context.Context) (int64, error), history historyReader) (*Report, error) {
	before, err := d.counters(ctx)
	if err != nil {
		return nil, err
	}
	log := newSentLog()
	got := newTally(d.prefix)
	s := &sender{client: d.client, url: d.cfg.API, prefix: d.prefix, senders: d.cfg.Senders, giveUp: d.cfg.GiveUp, log: log}

	// What goes on beside the sending ends with this function.
	ctx, cancel := context.WithCancelCause(ctx)
	var aside sync.WaitGroup
	defer aside.Wait()
	defer cancel(context.Canceled)
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	read := make(chan struct{})
	aside.Go(func() {
		defer close(read)
		if err := got.run(reading, src); err != nil {
			cancel(err)
		}
	})
	var sending atomic.Bool
	sending.Store(true)
	look := func(ctx context.Context) snapshot {
		done, _ := got.done()
		return snapshot{
			sent: s.accepted.Load(), done: done, total: int64(d.cfg.Input.total), sending: sending.Load(), lag: askLag(ctx, lag),
		}
	}
	showing, stopShowing := context.WithCancel(ctx)
	defer stopShowing()
	shown := make(chan struct{})
	aside.Go(func() {
		defer close(shown)
		newProgress(d.cfg.Out, look).run(showing)
	})

	if err := d.send(ctx, s); err != nil {
		return nil, err
	}
	sending.Store(false)
	if err := d.await(ctx, s.accepted.Load(), got); err != nil {
		return nil, err
	}
	stopShowing()
	<-shown
	stopReading()
	<-read
	return d.report(ctx, s, got, history, before)
}

// askLag returns what is shown of the lag; a lag that is not to be had is no
// lag of 0.
func askLag(ctx context.Context, lag func(context.Context) (int64, error)) int64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	n, err := lag(ctx)
	if err != nil {
		return -1
	}
	return n
}

func (d *Demo) send(ctx context.Context, s *sender) error {
	src, err := d.cfg.Input.open()
	if err != nil {
		return err
	}
	defer src.close() //nolint:errcheck // only read
	broken := func(err error) error {
		if !d.cfg.Input.lenient {
			return err // the file has changed since it was checked
		}
		if d.broken.Add(1) <= maxLineErrors {
			_, _ = fmt.Fprintf(d.cfg.Out, "\r%v\n", err)
		}
		return nil
	}
	err = s.send(ctx, src, broken)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// await returns when every accepted task has a result and nothing more comes,
// or when none has come for too long.
func (d *Demo) await(ctx context.Context, accepted int64, got *tally) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var seen int64
	last := time.Now()
	for {
		done, events := got.done()
		if events != seen {
			seen, last = events, time.Now()
		}
		patience := d.cfg.Stall
		if done >= accepted {
			patience = d.cfg.Settle
		}
		if time.Since(last) >= patience {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// counters are what others count since they started.
type counters struct{ throttled, redelivered int64 }

func (d *Demo) counters(ctx context.Context) (counters, error) {
	c := counters{throttled: -1, redelivered: -1}
	var err error
	if d.cfg.Simulator != "" {
		if c.throttled, err = providerThrottled(ctx, d.client, d.cfg.Simulator); err != nil {
			return c, err
		}
	}
	if d.cfg.Redelivered != nil {
		if c.redelivered, err = d.cfg.Redelivered(ctx); err != nil {
			return c, fmt.Errorf("count redeliveries: %w", err)
		}
	}
	return c, nil
}

func (d *Demo) report(ctx context.Context, s *sender, got *tally, history historyReader, before counters) (*Report, error) {
	after, err := d.counters(ctx)
	if err != nil {
		return nil, err
	}
	// Nobody writes to either any more.
	sent, results := s.log.conversations, got.results
	v, err := judge(ctx, d.prefix, sent, results, history)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Provider: d.cfg.Provider,
		Verdict:  *v, Refused: s.log.refused, FirstRefusal: s.log.firstRefusal, BrokenLines: int(d.broken.Load()),
		Throttled: s.throttled.Load(), ProviderThrottled: after.throttled, Redelivered: after.redelivered,
	}
	if r.ProviderThrottled >= 0 {
		r.ProviderThrottled -= before.throttled
	}
	if r.Redelivered >= 0 {
		r.Redelivered -= before.redelivered
	}
	r.measure(sent, results)
	return r, nil
}
