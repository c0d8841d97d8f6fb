package outbox

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/jackc/pgx/v5"

	"millrace"
)

// Shards is how many ways the outbox is split by key. It is part of the schema:
// rows carry their shard.
const Shards = 8

// ResultsTopic is where events go that name no topic.
const ResultsTopic = "results"

// DeadLettersTopic is where a copy of every dead letter goes.
const DeadLettersTopic = "dlq"

// Message is one row of the outbox.
type Message struct {
	// ID is the CloudEvents id, the same whenever the event is published.
	ID string
	// Type is the CloudEvents type.
	Type string
	// Topic is the Kafka topic without the prefix. Empty means [ResultsTopic].
	Topic string
	// Key is the Kafka key; messages of one key are published in commit order.
	// Empty means no key and no order.
	Key string
	// ContentType describes Data.
	ContentType string
	// Headers are further record headers.
	Headers []millrace.Header
	// Data is the value. Nil publishes a null value.
	Data []byte
	// At is the event's time. Zero means now.
	At time.Time
}

// Shard returns the shard of a key.
func Shard(key string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // a hash.Hash never fails
	return int(h.Sum32() % Shards)
}

// Columns returns the message as column values, in the order of the outbox
// insert statements of this module.
func (m *Message) Columns() (Columns, error) {
	if m.ID == "" || m.Type == "" {
		return Columns{}, fmt.Errorf("outbox message %q of type %q: id and type are required", m.ID, m.Type)
	}
	if m.Topic == MarkersTopic {
		return Columns{}, fmt.Errorf("outbox message %q: %w", m.ID, errMarkersTopic)
	}
	c := Columns{
		Topic:       m.Topic,
		EventID:     m.ID,
		EventType:   m.Type,
		ContentType: m.ContentType,
		Data:        m.Data,
		At:          m.At,
	}
	if c.Topic == "" {
		c.Topic = ResultsTopic
	}
	if c.At.IsZero() {
		c.At = time.Now()
	}
	shardKey := m.Key
	if m.Key != "" {
		c.Key = []byte(m.Key)
	} else {
		shardKey = m.ID
	}
	c.Shard = int16(Shard(shardKey)) //nolint:gosec // below Shards
	if len(m.Headers) > 0 {
		b, err := EncodeHeaders(m.Headers)
		if err != nil {
			return Columns{}, err
		}
		c.Headers = &b
	}
	return c, nil
}

// errMarkersTopic: a record of anybody else's would be read as what the relay has
// published.
var errMarkersTopic = errors.New("topic " + MarkersTopic + " is the relay's own")

// Columns is a message in the types of the table.
type Columns struct {
	Shard       int16
	Topic       string
	Key         []byte
	EventID     string
	EventType   string
	ContentType string
	Headers     *string
	Data        []byte
	At          time.Time
}

type headerJSON struct {
	Key   string `json:"k"`
	Value []byte `json:"v"`
}

// EncodeHeaders returns record headers as the JSON that the schema keeps them in.
func EncodeHeaders(headers []millrace.Header) (string, error) {
	out := make([]headerJSON, len(headers))
	for i, h := range headers {
		out[i] = headerJSON(h)
	}
	b, err := json.Marshal(out)
	if err != nil {
		return "", fmt.Errorf("encode headers: %w", err)
	}
	return string(b), nil
}

func decodeHeaders(s *string) ([]millrace.Header, error) {
	if s == nil {
		return nil, nil
	}
	var in []headerJSON
	if err := json.Unmarshal([]byte(*s), &in); err != nil {
		return nil, fmt.Errorf("decode headers: %w", err)
	}
	out := make([]millrace.Header, len(in))
	for i, h := range in {
		out[i] = millrace.Header(h)
	}
	return out, nil
}

var (
	//go:embed sql/append.sql
	appendSQL string
	//go:embed sql/lock_keys.sql
	lockKeysSQL string
	//go:embed sql/try_lock_keys.sql
	tryLockKeysSQL string
)

// QueueKeyLocks adds the statement that holds keys until the transaction ends, so
// that ids within a key ascend in commit order. It runs to its end before the
// statements behind it draw ids, and takes the locks of any two transactions in
// one order.
func QueueKeyLocks(batch *pgx.Batch, keys []string) {
	if len(keys) > 0 {
		batch.Queue(lockKeysSQL, keys)
	}
}

// TryKeyLocks holds keys until the transaction ends, as [Append] does, and returns
// those that somebody else holds instead of waiting for them.
func TryKeyLocks(ctx context.Context, tx pgx.Tx, keys []string) (held []string, err error) {
	if len(keys) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, tryLockKeysSQL, keys)
	if err == nil {
		held, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		return nil, fmt.Errorf("lock keys of outbox: %w", err)
	}
	return held, nil
}

// Append adds messages to the outbox in the caller's transaction. It takes an
// advisory lock on each message's key until that transaction ends, so that ids
// within a key ascend in commit order; append the messages of several keys in
// one call, or in the same order everywhere, lest two transactions deadlock.
func Append(ctx context.Context, tx pgx.Tx, messages ...Message) error {
	if len(messages) == 0 {
		return errors.New("append to outbox: no messages")
	}
	var (
		keys    []string
		columns = make([]Columns, len(messages))
	)
	for i := range messages {
		var err error
		if columns[i], err = messages[i].Columns(); err != nil {
			return fmt.Errorf("append to outbox: %w", err)
		}
		if messages[i].Key != "" {
			keys = append(keys, messages[i].Key)
		}
	}
	batch := &pgx.Batch{}
	QueueKeyLocks(batch, keys)
	for _, c := range columns {
		batch.Queue(appendSQL, c.Shard, c.Topic, c.Key, c.EventID, c.EventType, c.ContentType, c.Headers, c.Data, c.At)
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("append to outbox: %w", err)
	}
	return nil
}
