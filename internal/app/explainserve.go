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

// explain answers for engines that share an address.
func explain(engines ...*consumer.Engine) http.Handler {
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
		var found *consumer.Explanation
		for _, e := range engines {
			if meant := query.Get("incarnation"); meant != "" && meant != e.Incarnation() {
				continue
			}
			x := e.Explain(id, at)
			if found == nil || found.State == consumer.Absent {
				found = &x
			}
		}
		if found == nil {
			http.Error(w, "another worker serves this address", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(found) // the asker has gone
	})
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
