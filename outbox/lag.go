package outbox

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

//go:embed sql/lag.sql
var lagSQL string

// lag is what waits in the shards that a relay owns, as of the last look. It is
// there whether or not the sink takes anything.
type lag struct {
	mu     sync.Mutex
	shards map[int]shardLag
}

type shardLag struct {
	rows   int64
	oldest time.Time // zero when nothing waits
}

// look measures the lag of the owned shards; what others own is not known here.
func (l *lag) look(ctx context.Context, r *Relay, owned map[int]*ownedShard) error {
	var (
		shards []int16
		after  []int64
	)
	for shard, o := range owned {
		if o.publisher.begun.Load() && !o.leaving {
			shards = append(shards, int16(shard)) //nolint:gosec // below Shards
			after = append(after, o.publisher.position.Load())
		}
	}
	found := make(map[int]shardLag, len(shards))
	if len(shards) > 0 {
		err := walking(ctx, r.cfg.Pool, func(b *pgx.Batch, _ *string, _ *time.Time) {
			b.Queue(lagSQL, shards, after).Query(func(rs pgx.Rows) error {
				for rs.Next() {
					var (
						shard  int
						oldest *time.Time
						one    shardLag
					)
					if err := rs.Scan(&shard, &oldest, &one.rows); err != nil {
						return err
					}
					if oldest != nil {
						one.oldest = *oldest
					}
					found[shard] = one
				}
				return rs.Err()
			})
		})
		if err != nil {
			return fmt.Errorf("measure lag: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shards = found
	return nil
}

func (l *lag) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shards = nil
}

var (
	lagRowsDesc = prometheus.NewDesc("millrace_relay_lag_rows",
		"Rows of an owned shard that wait to be published, estimated when there are more than 1,000.", []string{"shard"}, nil)
	lagSecondsDesc = prometheus.NewDesc("millrace_relay_lag_seconds",
		"Age of the first row of an owned shard that waits to be published, 0 when none does.", []string{"shard"}, nil)
)

// Describe is for the registry.
func (l *lag) Describe(descs chan<- *prometheus.Desc) {
	descs <- lagRowsDesc
	descs <- lagSecondsDesc
}

// Collect is for the registry.
func (l *lag) Collect(metrics chan<- prometheus.Metric) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for shard, one := range l.shards {
		age := 0.0
		if !one.oldest.IsZero() {
			age = max(0, time.Since(one.oldest).Seconds())
		}
		label := strconv.Itoa(shard)
		metrics <- prometheus.MustNewConstMetric(lagRowsDesc, prometheus.GaugeValue, float64(one.rows), label)
		metrics <- prometheus.MustNewConstMetric(lagSecondsDesc, prometheus.GaugeValue, age, label)
	}
}
