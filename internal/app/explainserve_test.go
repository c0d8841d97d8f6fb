package app

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/consumer"
)

type noStore struct{ consumer.Store }

func newEngine(t *testing.T) *consumer.Engine {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { _ = client.Close() })
	e, err := consumer.New(consumer.Config{
		Kafka: []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1")}, Redis: client, Store: noStore{},
		Handler: millrace.HandlerFunc(func(context.Context, *millrace.Turn) error { return nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAWorkerAnswersForItsOwnIncarnationsAlone(t *testing.T) {
	one, two := newEngine(t), newEngine(t)
	mux := http.NewServeMux()
	mux.Handle(explainRoute, explain(one, two))
	for path, want := range map[string]struct {
		status int
		by     string
	}{
		"/v1/tasks/a%2Fb/explain":                                         {http.StatusOK, two.Incarnation()},
		"/v1/tasks/t/explain?incarnation=" + one.Incarnation():            {http.StatusOK, one.Incarnation()},
		"/v1/tasks/t/explain?incarnation=gone":                            {http.StatusNotFound, ""},
		"/v1/tasks/t/explain?topic=x":                                     {http.StatusBadRequest, ""},
		"/v1/tasks/t/explain?topic=x&partition=1&offset=y":                {http.StatusBadRequest, ""},
		"/v1/tasks/t/explain?topic=x&partition=5000000000&offset=1":       {http.StatusBadRequest, ""},
		"/v1/tasks/t/explain?partition=1&offset=1":                        {http.StatusBadRequest, ""},
		"/v1/tasks/%00/explain":                                           {http.StatusBadRequest, ""},
		"/v1/tasks/t/explain?topic=x&partition=1&offset=9223372036854775": {http.StatusOK, two.Incarnation()},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want.status {
			t.Errorf("%s: status %d, want %d: %s", path, w.Code, want.status, w.Body)
			continue
		}
		if want.status != http.StatusOK {
			continue
		}
		var x consumer.Explanation
		if err := json.Unmarshal(w.Body.Bytes(), &x); err != nil || x.State != consumer.Absent || x.Incarnation != want.by {
			t.Errorf("%s: %s, %v", path, w.Body, err)
		}
	}
}
