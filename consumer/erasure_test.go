package consumer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"millrace"
)

// erase leaves the tombstone of a conversation, as the store does.
func (s *memoryStore) erase(id string) millrace.Erased {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[id]
	s.convs[id] = millrace.Conversation{ID: id, Version: c.Version + 1, Erased: c.Last()}
	return millrace.Erased{Conversation: id, Version: c.Version + 1}
}

func TestErasedConversationLeavesTheMemoryOfIdleLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemoryStore()
		o := newOffline(t, store, appendTask, nil)
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal), task("other", 0, millrace.Normal))
		synctest.Wait()
		o.mu.Lock()
		if n := o.cache.count; n != 2 {
			t.Fatalf("%d conversations in the cache, want 2", n)
		}
		o.mu.Unlock()
		erased := store.erase("c")
		o.erased([]millrace.Erased{erased})
		o.mu.Lock()
		for key, l := range o.lanes {
			if key.conversation == "c" && l.conv != nil {
				t.Errorf("a lane still holds version %d of the erased conversation", l.conv.Version)
			}
		}
		if n := o.cache.count; n != 1 {
			t.Errorf("%d conversations in the cache, want the other one", n)
		}
		o.mu.Unlock()
		o.feed(t, 0, task("c", 1, millrace.Normal))
		synctest.Wait()
		// Told once more, as after a lost connection: what has gone on since stays.
		o.erased([]millrace.Erased{erased})
		o.mu.Lock()
		defer o.mu.Unlock()
		if n := o.cache.count; n != 2 {
			t.Errorf("%d conversations in the cache, want the one that began anew as well", n)
		}
		last := store.order[len(store.order)-1]
		if last.Task.ID != "c/normal/1" || last.Base.Version != 2 || last.Base.Length != 0 || last.Base.Erased != 1 {
			t.Errorf("%s ran on %+v, want an empty conversation behind one erased message", last.Task.ID, last.Base)
		}
	})
}

func TestTurnThatRunsWhileItsConversationIsErasedRunsAnewOnAnEmptyOne(t *testing.T) {
	for name, told := range map[string]bool{"worker told": true, "worker not told": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, g := newMemoryStore(), newGate()
				var saw []string
				o := newOffline(t, store, func(ctx context.Context, turn *millrace.Turn) error {
					if turn.Task().ID == "c/normal/1" && len(saw) == 0 {
						if err := g.handle(ctx, turn); err != nil {
							return err
						}
					}
					history, err := turn.History(ctx, 10)
					if err != nil {
						return err
					}
					if turn.Task().ID == "c/normal/1" {
						saw = append(saw, fmt.Sprintf("v%d:%d", turn.Version(), len(history)))
					}
					return appendTask(ctx, turn)
				}, nil)
				o.assign(0)
				o.feed(t, 0, task("c", 0, millrace.Normal), task("c", 1, millrace.Normal))
				synctest.Wait()
				erased := store.erase("c")
				if told {
					o.erased([]millrace.Erased{erased})
				}
				g.release("c/normal/1")
				<-time.After(time.Second)
				synctest.Wait()
				if len(saw) != 2 || saw[1] != "v2:0" {
					t.Errorf("the turn saw %v, want it run again on version 2 without history", saw)
				}
				store.mu.Lock()
				defer store.mu.Unlock()
				if c := store.convs["c"]; c.Version != 3 || c.Length != 1 || c.Tail[0].Seq != c.Erased+1 {
					t.Errorf("left with %+v, want one message behind the erased ones", c)
				}
			})
		})
	}
}

type losingErasures struct{ calls int }

func (l *losingErasures) WatchErasures(_ context.Context, told func([]millrace.Erased)) error {
	if l.calls++; l.calls > 1 {
		told([]millrace.Erased{{Conversation: "c", Version: 9}})
	}
	return errors.New("connection lost")
}

func TestEngineListensForErasuresAgainAfterItHasLostThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := &losingErasures{}
		o := newOffline(t, newMemoryStore(), appendTask, func(c *Config) { c.Erasures = lost })
		o.assign(0)
		o.feed(t, 0, task("c", 0, millrace.Normal))
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.hearErasures(ctx)
		}()
		<-time.After(time.Minute)
		cancel()
		<-done
		o.mu.Lock()
		defer o.mu.Unlock()
		if lost.calls < 3 || o.cache.count != 0 {
			t.Errorf("%d calls, %d conversations kept", lost.calls, o.cache.count)
		}
	})
}
