package outbox

import (
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// MarkerRecord lets a test play a relay of its own.
func MarkerRecord(topic string, shard int, ids []int64, events []string) *kgo.Record {
	rows := make([]PublishedRow, len(ids))
	for i := range ids {
		rows[i] = publishedRow(ids[i], events[i])
	}
	return markerRecord(topic, shard, rows)
}

// ID is what the relay's leases carry.
func (r *Relay) ID() uuid.UUID { return r.id }
