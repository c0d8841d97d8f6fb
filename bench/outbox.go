package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/bench"
)

const (
	forwarderName   = "outbox.rate/watermill-forwarder"
	outboxOurs      = "outbox.rate"
	forwarderFactor = 30.0
	eventsRate      = "events/s"
	// forwarderRecords last the forwarder for a while; ours has as many as are asked
	// for.
	forwarderRecords = 20_000
)

// compareOutboxes publishes full outboxes on the same PostgreSQL and Kafka.
func compareOutboxes(ctx context.Context, o options) (_ *report, err error) {
	services, err := findServices(os.Environ())
	if err != nil {
		return nil, err
	}
	peer, err := buildModule(ctx, filepath.Join(o.dir, "watermill-forwarder"), "watermill-forwarder")
	if err != nil {
		return nil, fmt.Errorf("build Watermill's forwarder: %w", err)
	}
	prefix := fmt.Sprintf("bench-peers-%08x.", rand.Uint32()) //nolint:gosec // no secret
	defer func() { err = errors.Join(err, services.clean(ctx, prefix)) }()

	theirs := forwarderRuns{binary: peer, services: services, prefix: prefix, records: min(o.records, forwarderRecords)}
	ours := millraceRuns{binary: o.millrace, services: services}
	r := newReport("outbox", o)
	err = takeTurns(ctx, []contestant{
		{forwarderName, theirs.rate},
		{outboxOurs, ours.outboxRate(o.records)},
	}, o.runs, r.Samples)
	if err != nil {
		return nil, err
	}
	r.Results = judgeOutboxes(r.Samples)
	return r, nil
}

func judgeOutboxes(samples map[string][]float64) []bench.Result {
	peer := median(samples[forwarderName])
	return []bench.Result{
		bench.Plain(forwarderName, peer, eventsRate),
		bench.AtLeast(outboxOurs, median(samples[outboxOurs]), eventsRate, forwarderFactor*peer),
	}
}

// forwarderRuns measures it, each time with a table and a topic of its own.
type forwarderRuns struct {
	binary   string
	services services
	prefix   string
	records  int
}

func (f forwarderRuns) rate(ctx context.Context) (float64, error) {
	topic := f.prefix + "forwarder-" + strconv.FormatUint(rand.Uint64(), 36) //nolint:gosec // no secret
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(f.services.brokers, ",")...))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, 12, 1, nil, topic); err != nil {
		return 0, fmt.Errorf("create the forwarder's topic: %w", err)
	}
	out, err := output(ctx, f.services.environ, f.binary, "-brokers", f.services.brokers, "-topic", topic, "-records", strconv.Itoa(f.records))
	if err != nil {
		return 0, err
	}
	return measuredRate(out)
}
