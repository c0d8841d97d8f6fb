package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/ingest"
	"millrace/internal/kafka"
	"millrace/internal/settings"
	"millrace/statestore"
)

// DeadLetters is the dead letters of an installation.
type DeadLetters struct {
	*statestore.DeadLetterStore
	pool     *pgxpool.Pool
	settings *settings.Settings
	log      zerolog.Logger
}

// OpenDeadLetters returns the dead letters once PostgreSQL has answered and has
// the schema.
func OpenDeadLetters(ctx context.Context, s *settings.Settings, log zerolog.Logger) (*DeadLetters, error) {
	pool, err := openPostgres(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := awaitSchema(ctx, pool, log); err != nil {
		pool.Close()
		return nil, err
	}
	return &DeadLetters{DeadLetterStore: statestore.NewDeadLetterStore(pool), pool: pool, settings: s, log: log}, nil
}

// Close releases the connections.
func (d *DeadLetters) Close() { d.pool.Close() }

// RedriveConfig says what to put back.
type RedriveConfig struct {
	Filter statestore.DeadLetterFilter
	// NoDeadline takes the deadlines away. Default: a task whose deadline has passed
	// is refused.
	NoDeadline bool
	// DryRun only says what would become of each.
	DryRun bool
	// Each is told of every dead letter, in the order they came. An error ends the
	// redrive. Required.
	Each func(Redriven) error
}

// Redriven is a dead letter and what became of it, or in a dry run would.
type Redriven struct {
	statestore.Redriven
	// Topic, Partition and Offset are where its record was put. A dry run knows but
	// the topic.
	Topic     string
	Partition int32
	Offset    int64
}

// refusedError says why a dead letter cannot be put back, however often one tries.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

func refuse(format string, args ...any) error { return &refusedError{fmt.Errorf(format, args...)} }

// Redrive puts dead letters back in the order they came: tasks into the topics of
// their priorities, each as its next redrive, and events into the outbox. What is
// refused stays behind and holds nothing up; when Kafka or PostgreSQL fails, the
// redrive ends. Doing it again is safe: a run is done once per task and redrive.
//
// A dead letter that comes while it goes on, of a task that fails again for
// instance, is not part of it.
func (d *DeadLetters) Redrive(ctx context.Context, cfg RedriveConfig) error {
	_, last, err := d.Count(ctx, cfg.Filter)
	if err != nil || last == 0 {
		return err
	}
	cl, err := kafka.Dial(ctx, d.settings, "dlq", d.log, ingest.ProducerOptions()...)
	if err != nil {
		return err
	}
	defer cl.Close()
	r := &redrive{client: cl, settings: d.settings, noDeadline: cfg.NoDeadline}
	if r.topics, err = kadm.NewClient(cl).ListTopics(ctx); err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	take := d.take
	if cfg.DryRun {
		take = d.peek
	}
	f := cfg.Filter
	f.Last = last
	for ctx.Err() == nil {
		letters, err := take(ctx, f, r)
		if ctx.Err() != nil && err != nil {
			break
		}
		if err != nil || len(letters) == 0 {
			return err
		}
		var failed error
		for _, l := range letters {
			var refused *refusedError
			if l.Err != nil && !errors.As(l.Err, &refused) {
				if failed == nil {
					failed = fmt.Errorf("dead letter %d: %w", l.ID, l.Err)
				}
				continue
			}
			if err := cfg.Each(l); err != nil {
				return err
			}
		}
		if errors.Is(failed, errNotTried) {
			break
		}
		if failed != nil {
			return failed
		}
		f.After = letters[len(letters)-1].ID
	}
	return errInterrupted
}

var errInterrupted = errors.New("interrupted; what has not been put back still waits")

// take puts the first letters of a selection back.
func (d *DeadLetters) take(ctx context.Context, f statestore.DeadLetterFilter, r *redrive) ([]Redriven, error) {
	placed := make(map[int64]*kgo.Record)
	letters, err := d.DeadLetterStore.Redrive(ctx, f, func(ctx context.Context, letters []statestore.DeadLetter) []error {
		records, errs := r.send(ctx, letters)
		for i := range letters {
			placed[letters[i].ID] = records[i]
		}
		return errs
	})
	out := make([]Redriven, len(letters))
	for i := range letters {
		out[i].Redriven = letters[i]
		record, tried := placed[letters[i].ID]
		switch {
		case letters[i].Err == nil && tried:
			out[i].Topic, out[i].Partition, out[i].Offset = record.Topic, record.Partition, record.Offset
		case letters[i].Err != nil && !tried: // for what it is
			out[i].Err = &refusedError{letters[i].Err}
		}
	}
	return out, err
}

// peek says what take would do.
func (d *DeadLetters) peek(ctx context.Context, f statestore.DeadLetterFilter, r *redrive) ([]Redriven, error) {
	letters, err := d.Peek(ctx, f)
	out := make([]Redriven, len(letters))
	for i := range letters {
		out[i].Redriven = letters[i]
		if letters[i].Err != nil {
			out[i].Err = &refusedError{letters[i].Err}
		}
		if letters[i].Resort != statestore.Sent {
			continue
		}
		record, err := r.record(&letters[i].DeadLetter)
		if err != nil {
			out[i].Resort, out[i].Err = statestore.Kept, err
			continue
		}
		out[i].Topic = record.Topic
	}
	return out, err
}

// redrive sends the records of dead letters.
type redrive struct {
	client     *kgo.Client
	settings   *settings.Settings
	topics     kadm.TopicDetails
	noDeadline bool
}

// errNotTried is for what comes after a failure, or after the caller gave up.
var errNotTried = errors.New("not tried")

// send produces the records of dead letters and returns them, and for each what
// kept it from being acknowledged. Of a conversation it sends one record after
// another, so that none can overtake one that Kafka fails to take; unlike
// conversations go side by side.
func (r *redrive) send(ctx context.Context, letters []statestore.DeadLetter) ([]*kgo.Record, []error) {
	records, errs := make([]*kgo.Record, len(letters)), make([]error, len(letters))
	var rounds [][]int
	depth := make(map[string]int)
	for i := range letters {
		if records[i], errs[i] = r.record(&letters[i]); errs[i] != nil {
			continue
		}
		round := 0
		if key := string(records[i].Key); key != "" {
			round = depth[key]
			depth[key]++
		}
		if round == len(rounds) {
			rounds = append(rounds, nil)
		}
		rounds[round] = append(rounds[round], i)
	}
	failed := false
	for _, round := range rounds {
		if failed || ctx.Err() != nil {
			for _, i := range round {
				errs[i] = errNotTried
			}
			continue
		}
		failed = r.produce(ctx, round, records, errs)
	}
	return records, errs
}

// produce sends the records of one round and says whether any failed. What is
// under way is not given up: it would leave open whether Kafka has it.
func (r *redrive) produce(ctx context.Context, round []int, records []*kgo.Record, errs []error) (failed bool) {
	at := make(map[*kgo.Record]int, len(round))
	batch := make([]*kgo.Record, len(round))
	for n, i := range round {
		batch[n], at[records[i]] = records[i], i
	}
	for _, result := range r.client.ProduceSync(context.WithoutCancel(ctx), batch...) {
		switch {
		case result.Err == nil:
		case errors.Is(result.Err, kerr.MessageTooLarge):
			errs[at[result.Record]] = refuse("with its headers it is too large for topic %s", result.Record.Topic)
		default:
			errs[at[result.Record]] = fmt.Errorf("send to topic %s: %w", result.Record.Topic, result.Err)
			failed = true
		}
	}
	return failed
}

// The headers that a redrive changes; [millrace.Task.Record] has them all.
const (
	headerID       = "ce_id"
	headerRedrive  = "ce_redrive"
	headerDeadline = "ce_deadline"
)

// record returns the record of a dead letter as it is sent again: the same key,
// value and headers, but for the id, which names the task even when it followed
// from where the record lay, and the redrive. Its timestamp is new, because Kafka
// deletes old records.
func (r *redrive) record(d *statestore.DeadLetter) (*kgo.Record, error) {
	headers := slices.Clone(d.Record.Headers)
	if r.noDeadline {
		headers = slices.DeleteFunc(headers, func(h millrace.Header) bool { return h.Key == headerDeadline })
	}
	task, err := millrace.TaskFromRecord(millrace.Record{Key: d.Record.Key, Value: d.Record.Value, Headers: headers})
	if err != nil {
		return nil, refuse("it can never be a task: %w", err)
	}
	if !task.Deadline.IsZero() && time.Now().After(task.Deadline) {
		return nil, refuse("its deadline passed at %s", task.Deadline.Format(time.RFC3339))
	}
	topic, err := r.topic(d)
	if err != nil {
		return nil, err
	}
	headers = setHeader(headers, headerID, d.TaskID)
	headers = setHeader(headers, headerRedrive, strconv.Itoa(d.Redrive+1))
	record := &kgo.Record{Topic: topic, Key: d.Record.Key, Value: d.Record.Value, Headers: make([]kgo.RecordHeader, len(headers))}
	for i, h := range headers {
		record.Headers[i] = kgo.RecordHeader(h)
	}
	return record, nil
}

// topic returns where the task goes: where it came from if that is a topic of
// tasks of this installation still, or else the topic of its priority.
func (r *redrive) topic(d *statestore.DeadLetter) (string, error) {
	if strings.HasPrefix(d.Record.Topic, r.settings.TaskTopic("")) && r.topics.Has(d.Record.Topic) {
		return d.Record.Topic, nil
	}
	if d.Priority != "" {
		if topic := r.settings.TaskTopic(d.Priority); r.topics.Has(topic) {
			return topic, nil
		}
	}
	return "", refuse("there is no topic %s, nor one of this installation for priority %q", d.Record.Topic, d.Priority)
}

// setHeader replaces the headers of a name by one, in the place of the first.
func setHeader(headers []millrace.Header, key, value string) []millrace.Header {
	h := millrace.Header{Key: key, Value: []byte(value)}
	i := slices.IndexFunc(headers, func(h millrace.Header) bool { return h.Key == key })
	if i < 0 {
		return append(headers, h)
	}
	headers[i] = h
	rest := slices.DeleteFunc(headers[i+1:], func(h millrace.Header) bool { return h.Key == key })
	return headers[:i+1+len(rest)]
}
