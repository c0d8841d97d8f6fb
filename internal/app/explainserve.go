package app

import (
	"encoding/json"
	"net/http"
	"strconv"

	"millrace"
	"millrace/consumer"
)

// explainRoute is where a worker says where a task is. Its query may name the
// incarnation that is meant and where the task's record lies: topic, partition,
// offset.
const explainRoute = "GET /v1/tasks/{id}/explain"

// explain answers for engines that share an address, one question at a time: each
// looks through all that waits there, under the mutex that turns start with.
func explain(engines ...*consumer.Engine) http.Handler {
	asked := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		id := r.PathValue("id")
		if err := millrace.ValidateConversation(id); err != nil { // the same rules
			http.Error(w, "task id: "+err.Error(), http.StatusBadRequest)
			return
		}
		at, ok := placeOf(query.Get("topic"), query.Get("partition"), query.Get("offset"))
		if !ok {
			http.Error(w, "want topic, partition and offset together, the last two as whole numbers", http.StatusBadRequest)
			return
		}
		select {
		case asked <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		found := explanationOf(engines, query.Get("incarnation"), id, at)
		<-asked // before the answer is written: its reader may be slow
		if found == nil {
			http.Error(w, "another worker serves this address", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(found) // the asker has gone
	})
}

// explanationOf asks the engines, or the one that is meant, for a task. Nil: that
// one is not among them.
func explanationOf(engines []*consumer.Engine, meant, id string, at *consumer.Place) *consumer.Explanation {
	var found *consumer.Explanation
	for _, e := range engines {
		if meant != "" && meant != e.Incarnation() {
			continue
		}
		x := e.Explain(id, at)
		if found == nil || found.State == consumer.Absent {
			found = &x
		}
	}
	return found
}

func placeOf(topic, partition, offset string) (*consumer.Place, bool) {
	if topic == "" && partition == "" && offset == "" {
		return nil, true
	}
	number, err1 := strconv.ParseInt(partition, 10, 32)
	at, err2 := strconv.ParseInt(offset, 10, 64)
	if topic == "" || err1 != nil || err2 != nil {
		return nil, false
	}
	return &consumer.Place{Topic: topic, Partition: int32(number), Offset: at}, true
}
