//go:build integration

package integration

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace"
)

// up is a `millrace up` on a data directory that outlives it.
type up struct {
	*process
	*pipeline
}

func startUp(t testing.TB, dir string, env ...string) up {
	t.Helper()
	process := launch(t, "up", append([]string{"MILLRACE_HTTP_ADDR=127.0.0.1:0", "MILLRACE_LLM_PROXY_ADDR=off", "MILLRACE_HANDLER=echo"}, env...),
		"up", "--data", dir)
	process.addr = string(process.says(`API +http://(\S+)`, startPatience)[1])
	process.awaitReadyz()
	password, err := os.ReadFile(filepath.Join(dir, "postgres.password"))
	if err != nil {
		t.Fatal(err)
	}
	postgres := url.URL{
		Scheme: "postgres", User: url.UserPassword("millrace", strings.TrimSpace(string(password))),
		Host: string(process.says(`PostgreSQL .* on (\S+:\d+)`, startPatience)[1]), Path: "millrace", RawQuery: "sslmode=disable",
	}
	p := &pipeline{
		t: t, prefix: "millrace.", postgres: postgres.String(),
		brokers: []string{string(process.says(`Kafka protocol broker .* on (\S+:\d+)`, startPatience)[1])},
	}
	p.connect()
	p.sendTo(process.url())
	return up{process, p}
}

// What `millrace up --data DIR` has taken in outlives it: told to stop, and killed
// at work.
func TestRestartKeepsState(t *testing.T) {
	dir := dataDir(t)
	first := startUp(t, dir)
	sent := first.send(load{conversations: 40, turns: 4, rate: 200}).wait()
	first.check(t, sent)
	refusesSecondCopy(t, first, dir)
	first.terminate()

	// All of it is there again, and the conversations go on.
	second := startUp(t, dir)
	second.check(t, sent)
	second.goOn(t, sent, "after the stop")
	second.check(t, sent)
	atWork := make(map[string][]sentTask)
	for c := range 40 {
		name := fmt.Sprintf("at-work-%02d", c)
		atWork[name] = []sentTask{second.mustSubmit(t, name, "normal", `{"text":"before the kill"}`)}
	}
	second.kill()

	third := startUp(t, dir)
	third.goOn(t, sent, "after the kill")
	maps.Copy(sent, atWork)
	e := third.settle(t, sent)
	e.excuseCutTransaction(t, third, atWork)
	e.mustBear(t, sent)
	for _, tasks := range sent {
		for _, task := range tasks {
			if r := third.result(t, task.id); r.Status != millrace.StatusCompleted || string(r.Result) != task.content {
				t.Errorf("the API says %+v of %s in %s", r, task.content, task.conversation)
			}
		}
	}
	third.terminate()
}

// goOn sends one more turn to every conversation.
func (u up) goOn(t testing.TB, sent map[string][]sentTask, word string) {
	t.Helper()
	for conversation, tasks := range sent {
		sent[conversation] = append(tasks, u.mustSubmit(t, conversation, tasks[0].priority, `{"text":"`+word+`"}`))
	}
}

// excuseCutTransaction mends result events of tasks that were at work when the
// process was killed. The embedded broker ends a transaction partition by
// partition and keeps no note of what it decided, so a kill in the middle leaves
// it committed in some and aborted in others: an event may be gone, or there
// twice, although its task is done once. A real Kafka does neither.
func (e *evidence) excuseCutTransaction(t testing.TB, u up, atWork map[string][]sentTask) {
	t.Helper()
	published := make(map[string]bool)
	e.results = slices.DeleteFunc(e.results, func(r resultEvent) bool {
		again := published[r.result.TaskID] && atWork[r.key] != nil
		published[r.result.TaskID] = true
		if again {
			t.Logf("the kill cut a transaction: the result of task %s is there twice", r.result.TaskID)
		}
		return again
	})
	for _, tasks := range atWork {
		for _, task := range tasks {
			if !published[task.id] {
				t.Logf("the kill cut a transaction: the result of task %s is gone", task.id)
				e.results = append(e.results, resultEvent{id: task.id + ".result", key: task.conversation, result: u.result(t, task.id)})
			}
		}
	}
}

// dataDir returns a directory that PostgreSQL's own user can enter.
func dataDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, passed := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(passed, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "data")
}

// refusesSecondCopy starts two more: one on the same directory, one on the same
// port. Each must end with an error that says which.
func refusesSecondCopy(t *testing.T, first up, dir string) {
	t.Helper()
	for _, second := range []struct{ name, dir, addr, says string }{
		{"same directory", dir, "127.0.0.1:0", dir},
		{"same port", dataDir(t), first.addr, first.addr},
	} {
		p := launch(t, "up on the "+second.name, []string{"MILLRACE_HTTP_ADDR=" + second.addr, "MILLRACE_LLM_PROXY_ADDR=off"}, "up", "--data", second.dir)
		if code := p.wait(20 * time.Second); code != 1 {
			t.Errorf("%s: exit code %d, want 1", p.name, code)
		}
		said := strings.TrimSpace(string(p.output()))
		if !strings.Contains(said, second.says) || strings.Count(said, "\n") > 2 || strings.Contains(said, "goroutine") {
			t.Errorf("%s: want a plain error that names %s, got:\n%s", p.name, second.says, said)
		}
		t.Logf("%s: %s", p.name, said)
	}
	first.awaitReadyz()
}
