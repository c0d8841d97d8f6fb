//go:build integration

package statestore

import (
	"testing"

	"millrace"
)

// TestARedisThatForgotTheScriptGetsItAgain, as after a restart or a fail-over.
func TestARedisThatForgotTheScriptGetsItAgain(t *testing.T) {
	s := newStore(t)
	for v := range int64(3) {
		if err := s.cfg.Redis.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		convs := []millrace.Conversation{{ID: "a", Version: v + 1}, {ID: "b", Version: v + 1}}
		if err := s.hot.put(t.Context(), convs, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"a", "b"} {
		if conv, err := s.Open(t.Context(), &millrace.Task{ID: "x", Conversation: id}); err != nil || conv.Version != 3 {
			t.Errorf("%s: version %d, %v", id, conv.Version, err)
		}
	}
}
