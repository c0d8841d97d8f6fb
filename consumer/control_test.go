package consumer

import (
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
)

// What ends a transaction lies in the log behind its records, also if it was
// aborted, and nobody waits for it.
func TestEndsOfTransactionsAreCommitted(t *testing.T) {
	b, store := newBroker(t), newMemoryStore()
	producer, err := kgo.NewClient(append(b.opts, kgo.TransactionalID("t"), kgo.DefaultProduceTopic(Topic("t.", millrace.Normal)))...)
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for id, commit := range map[string]kgo.TransactionEndTry{"kept": kgo.TryCommit, "aborted": kgo.TryAbort} {
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		record := &kgo.Record{Key: []byte("c"), Value: []byte("x"), Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(id)}}}
		if err := producer.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	b.start(t, store, appendTask, nil)
	if got := store.await(t, 1); got[0].Task.ID != "kept" {
		t.Errorf("ran %s", got[0].Task.ID)
	}
	adm := kadm.NewClient(b.producer)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for behind := errors.New("not asked"); behind != nil; {
		if behind = everythingCommitted(t, adm); behind == nil {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal(behind)
		}
	}
}

// everythingCommitted returns what the group has yet to commit.
func everythingCommitted(t *testing.T, adm *kadm.Client) error {
	t.Helper()
	topic := Topic("t.", millrace.Normal)
	ends, err := adm.ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	commits, err := adm.FetchOffsets(t.Context(), Group("t.", "default"))
	if err != nil {
		return err
	}
	var behind error
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset == 0 {
			return
		}
		if end.Offset != 4 {
			t.Errorf("the log ends at %d, want two records and two ends", end.Offset)
		}
		if at, ok := commits.Lookup(end.Topic, end.Partition); !ok || at.At != end.Offset {
			behind = errors.New("the end of the log is not committed")
		}
	})
	return behind
}
