package consumer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnContextBehavesLikeOneWithADeadline(t *testing.T) {
	ask := map[string]func(context.Context) error{
		"by Err": func(ctx context.Context) error { return ctx.Err() },
		"by Done": func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			default:
				return nil
			}
		},
		"by a child": func(ctx context.Context) error {
			child, cancel := context.WithCancel(ctx)
			defer cancel()
			synctest.Wait()
			return child.Err()
		},
	}
	for name, err := range ask {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				parent, cancelParent := context.WithCancel(t.Context())
				defer cancelParent()
				c := newTurnContext(parent, began.Add(time.Minute))
				if at, ok := c.Deadline(); !ok || !at.Equal(began.Add(time.Minute)) {
					t.Errorf("Deadline() = %v, %v", at, ok)
				}
				if got := err(c); got != nil {
					t.Errorf("before the deadline: %v", got)
				}
				<-time.After(time.Minute)
				synctest.Wait()
				if got := err(c); !errors.Is(got, context.DeadlineExceeded) {
					t.Errorf("at the deadline: %v", got)
				}
				_ = c.end(time.Now())
				if got := err(c); got == nil {
					t.Error("the deadline's error is forgotten at the end")
				}

				c = newTurnContext(parent, time.Now().Add(time.Minute))
				if got := err(c); got != nil {
					t.Errorf("before the parent's end: %v", got)
				}
				cancelParent()
				if got := err(c); !errors.Is(got, context.Canceled) {
					t.Errorf("after the parent's end: %v", got)
				}
				_ = c.end(time.Now())

				c = newTurnContext(t.Context(), time.Now().Add(time.Minute))
				_ = c.end(time.Now())
				if got := err(c); !errors.Is(got, context.Canceled) {
					t.Errorf("after the end: %v", got)
				}
			})
		})
	}
}

// What waits for the context must be told of its end, whatever ends it: a timer,
// the parent, the engine.
func TestTurnContextWakesWhoWaits(t *testing.T) {
	for name, endIt := range map[string]func(c *turnContext, cancelParent func()){
		"deadline": func(*turnContext, func()) { <-time.After(time.Minute) },
		"parent":   func(_ *turnContext, cancelParent func()) { cancelParent() },
		"engine":   func(c *turnContext, _ func()) { _ = c.end(time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent, cancelParent := context.WithCancel(t.Context())
				defer cancelParent()
				c := newTurnContext(parent, time.Now().Add(time.Minute))
				woken := false
				go func() {
					<-c.Done()
					woken = true
				}()
				synctest.Wait()
				endIt(c, cancelParent)
				synctest.Wait()
				if !woken {
					t.Error("still waiting")
				}
				_ = c.end(time.Now())
			})
		})
	}
}
