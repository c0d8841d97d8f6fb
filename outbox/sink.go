package outbox

import "context"

// Sink is where a relay publishes to.
type Sink interface {
	// Open takes a shard over. From then on, whoever had it open before can publish
	// nothing more, as far as the sink can see to that.
	Open(ctx context.Context, shard int) (SinkShard, error)
}

// SinkShard is a shard that is open. After an error it is closed, and the shard is
// opened anew.
type SinkShard interface {
	// Published returns rows that may still be in the outbox although an earlier
	// owner published them. It is called once, before all else.
	Published(ctx context.Context) ([]PublishedRow, error)
	// Prepare gives rows the sink's form, ahead of their turn: an earlier batch may
	// be under way.
	Prepare(rows []Row) Batch
	// Close gives up what is not finished.
	Close()
}

// Batch is what a sink takes at once.
type Batch interface {
	// Publish returns nil when all rows are published. unsettled are rows that have
	// been published before and may still be in the outbox. An error may be a
	// [*RefusedError].
	Publish(ctx context.Context, unsettled []PublishedRow) error
}

// Row is a row of the outbox.
type Row struct {
	Message
	// Number is the row's id in the table. It says nothing to readers.
	Number int64
	// Keyed tells an empty key from none.
	Keyed bool
}

// RefusedError says that a sink will never take some rows of a batch. The others
// are published again.
type RefusedError struct {
	// Rows are the numbers of the rows, with why each is refused.
	Rows map[int64]error
	// Together is set when the batch is refused for good and more than one row may be
	// at fault: they are then published one by one.
	Together bool
	// Err is what happened.
	Err error
}

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }
