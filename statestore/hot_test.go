package statestore

import (
	"reflect"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"millrace"
)

// The stand-in for Redis has a Lua of its own, which is stricter about types.
func TestHotCopiesInTheStandIn(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	h := &hotCopies{redis: client, prefix: "p:", ttl: time.Hour}
	open := func() (*millrace.Conversation, bool) {
		t.Helper()
		found, spoilt, err := h.open(t.Context(), []*millrace.Task{{ID: "task", Conversation: "conv"}})
		if err != nil {
			t.Fatal(err)
		}
		return found[0], spoilt
	}
	var base millrace.Conversation
	base.ID = "conv"
	turn := func() {
		t.Helper()
		effects := millrace.Effects{State: []byte(`{}`), Messages: []millrace.Message{{Role: millrace.RoleUser, Content: "x"}}}
		next := base.After(&millrace.Task{ID: "task"}, &effects, time.Now())
		if err := h.advance(t.Context(), []advanced{{base: base.Version, next: next, added: 1}}); err != nil {
			t.Fatal(err)
		}
		base = next
		if got, spoilt := open(); spoilt || got == nil || !reflect.DeepEqual(*got, base) {
			t.Fatalf("%+v, spoilt %v, want %+v", got, spoilt, base)
		}
	}
	turn() // written whole
	turn() // moved on
	hash, list := h.keys("conv")
	for _, key := range []string{hash, list} {
		client.Set(t.Context(), key, "x", time.Minute)
		if got, spoilt := open(); !spoilt || got != nil {
			t.Fatalf("%s of another type: %+v, spoilt %v", key, got, spoilt)
		}
		turn()
	}
	foreign := base
	foreign.ID = "other"
	client.HSet(t.Context(), hash, "d", encodeHotDoc(&foreign), "t", 99)
	if got, spoilt := open(); !spoilt || got != nil {
		t.Fatalf("another conversation's: %+v, spoilt %v", got, spoilt)
	}
	turn()
	if err := h.bury(t.Context(), &millrace.Conversation{ID: "conv", Version: base.Version + 1, Erased: base.Last()}); err != nil {
		t.Fatal(err)
	}
	if got, spoilt := open(); spoilt || got == nil || got.Version != base.Version+1 || got.Length != 0 || got.Erased != base.Last() {
		t.Fatalf("erased: %+v, spoilt %v", got, spoilt)
	}
}
