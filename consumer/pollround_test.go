package consumer

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

func TestAnAssignmentWaitsForWhatWasFetchedBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, appendTask, nil)
		fetch := func(from, to int) kgo.Fetches {
			var records []*kgo.Record
			for n := from; n < to; n++ {
				records = append(records, &kgo.Record{
					Topic: Topic("t.", millrace.Normal), Offset: int64(n), Key: []byte("c"), Value: []byte("x"),
				})
			}
			return kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: Topic("t.", millrace.Normal), Partitions: []kgo.FetchPartition{{Records: records}}}}}}
		}
		o.assign(0)
		// A poll takes offsets 2 and 3 from the client's buffer; they are handed in only
		// after the partition was lost.
		lost := make(chan struct{})
		go o.round.run(t.Context(), func(context.Context) kgo.Fetches {
			<-lost
			return fetch(2, 4)
		}, o.accept)
		synctest.Wait()
		o.lose(0)
		go func() {
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // fake time
			close(lost)
		}()
		o.assign(0)
		o.accept(fetch(0, 2)) // what the group has committed is 0
		o.accept(fetch(2, 4))
		if got := len(store.await(t, 4)); got != 4 {
			t.Errorf("%d tasks done, want 4", got)
		}
	})
}

func TestAnAssignmentEndsTheWaitOfAnIdlePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r pollRound
		r.settle(t.Context()) // before the first one
		began := time.Now()
		go r.run(t.Context(), func(ctx context.Context) kgo.Fetches {
			<-ctx.Done()
			return nil
		}, func(kgo.Fetches) {})
		synctest.Wait()
		r.settle(t.Context())
		if took := time.Since(began); took != 0 {
			t.Errorf("the assignment waited %s for a poll that had nothing", took)
		}
	})
}
