//go:build integration

package statestore

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"millrace"
)

func stepOn(version int64, request string) millrace.Step {
	return millrace.Step{
		Task: millrace.Key{ID: "task"}, Name: "llm", RequestHash: sha256.Sum256([]byte(request)), BaseVersion: version,
	}
}

// TestAnOutcomeThatArrivesWhileAnotherRunTakesTheStepOverStays lets an answer
// become durable between the two statements of another run's Begin.
func TestAnOutcomeThatArrivesWhileAnotherRunTakesTheStepOverStays(t *testing.T) {
	pool := newDatabase(t)
	redis := newRedis(t)
	first, second := run(t, Config{Pool: pool, Redis: redis}), run(t, Config{Pool: pool, Redis: redis})
	if _, _, err := first.Begin(t.Context(), stepOn(1, "a")); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), finishStepSQL, "task", 0, "llm", first.incarnation, 1, []byte("paid for"), 1, 2, 3); err != nil {
		t.Fatal(err)
	}
	begun := make(chan error, 1)
	go func() {
		_, _, err := second.Begin(t.Context(), stepOn(1, "a"))
		begun <- err
	}()
	awaitBlocked(t, pool, 1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-begun; !millrace.IsUnavailable(err) {
		t.Errorf("the run that lost the race: %v", err)
	}
	if r, done, err := second.Begin(t.Context(), stepOn(1, "a")); err != nil || !done || string(r.Output) != "paid for" {
		t.Errorf("tried again: %+v, %v, %v", r, done, err)
	}
}

func TestTheFirstOutcomeOfAStepStands(t *testing.T) {
	s := newStore(t)
	if _, _, err := s.Begin(t.Context(), stepOn(1, "a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), stepOn(1, "a"), millrace.StepResult{}); err != nil { // an empty outcome is one
		t.Fatal(err)
	}
	late := millrace.StepResult{Output: []byte("of a run that was given up")}
	if err := s.Finish(t.Context(), stepOn(1, "a"), late); !millrace.IsUnavailable(err) {
		t.Errorf("second outcome: %v", err)
	}
	if r, done, err := s.Begin(t.Context(), stepOn(1, "a")); err != nil || !done || len(r.Output) != 0 {
		t.Errorf("replay: %+v, %v, %v", r, done, err)
	}
}

func TestAnotherIncarnationsOutcomeIsNotTaken(t *testing.T) {
	pool := newDatabase(t)
	redis := newRedis(t)
	zombie, owner := run(t, Config{Pool: pool, Redis: redis}), run(t, Config{Pool: pool, Redis: redis})
	for _, s := range []*Store{zombie, owner} {
		if _, done, err := s.Begin(t.Context(), stepOn(1, "a")); err != nil || done {
			t.Fatal(done, err)
		}
	}
	if err := zombie.Finish(t.Context(), stepOn(1, "a"), millrace.StepResult{Output: []byte("z")}); !millrace.IsUnavailable(err) {
		t.Errorf("the zombie's outcome: %v", err)
	}
	if err := owner.Finish(t.Context(), stepOn(1, "a"), millrace.StepResult{Output: []byte("o")}); err != nil {
		t.Error(err)
	}
	// On another version the owner's own late outcome is none either.
	if _, done, err := owner.Begin(t.Context(), stepOn(2, "a")); err != nil || done {
		t.Fatal(done, err)
	}
	if err := owner.Finish(t.Context(), stepOn(1, "a"), millrace.StepResult{Output: []byte("late")}); !millrace.IsUnavailable(err) {
		t.Errorf("an outcome of another version: %v", err)
	}
}

// TestRunsThatBeginAStepAtOnce: whatever the interleaving, at most one outcome is
// taken, and everybody who is told of one is told of that.
func TestRunsThatBeginAStepAtOnce(t *testing.T) {
	pool := newDatabase(t)
	redis := newRedis(t)
	stores := make([]*Store, 4)
	for i := range stores {
		stores[i] = run(t, Config{Pool: pool, Redis: redis})
	}
	for round := range 30 {
		step := stepOn(1, "a")
		step.Task.ID = fmt.Sprintf("task-%d", round)
		taken := make(chan string, len(stores))
		for i, s := range stores {
			go func() {
				r, done, err := s.Begin(t.Context(), step)
				switch {
				case err != nil && !millrace.IsUnavailable(err):
					t.Error(err)
				case done:
					taken <- string(r.Output)
					return
				case err == nil:
					mine := fmt.Sprint(i)
					if s.Finish(t.Context(), step, millrace.StepResult{Output: []byte(mine)}) == nil {
						taken <- mine
						return
					}
				}
				taken <- ""
			}()
		}
		outcome := ""
		for range stores {
			got := <-taken
			if got == "" {
				continue
			}
			if outcome != "" && got != outcome {
				t.Errorf("round %d: outcomes %s and %s were both taken", round, outcome, got)
			}
			outcome = got
		}
		if outcome == "" {
			t.Errorf("round %d: nobody got an outcome", round)
		}
	}
}
