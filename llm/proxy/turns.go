package proxy

import (
	"context"
	"crypto/rand"
	"sync"

	"millrace"
)

// Turns are the turns that calls can be made for: the zero value has none.
type Turns struct {
	mu   sync.Mutex
	live map[string]liveTurn
}

type liveTurn struct {
	turn *millrace.Turn
	over context.Context //nolint:containedctx // ends with the turn, not with a call
}

// Register makes a turn live under an unguessable token, until release is
// called. Release ends the calls that are still under way for the turn.
func (t *Turns) Register(turn *millrace.Turn) (token string, release func()) {
	token = rand.Text() // 128 bits or more
	// No caller's context: the turn's end is when release is called.
	over, end := context.WithCancel(context.Background())
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = make(map[string]liveTurn)
	}
	t.live[token] = liveTurn{turn, over}
	return token, func() {
		t.mu.Lock()
		delete(t.live, token)
		t.mu.Unlock()
		end()
	}
}

func (t *Turns) find(token string) (liveTurn, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	live, ok := t.live[token]
	return live, ok
}
