//go:build integration

package examples_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace"
	"millrace/internal/embedded"
	"millrace/llm/sim"
)

// upProcess is a running `millrace up` and where its parts are.
type upProcess struct {
	*process
	api, simulator, kafka string
}

// startUp starts everything with an agent in Python as the handler.
func startUp(t *testing.T, millrace, python, agent string, vars map[string]string) *upProcess {
	t.Helper()
	// The agent has to know the proxy, and the worker the agent.
	proxy := freeAddr(t)
	proxyURL := "http://" + proxy
	if agent == "agent.py" {
		proxyURL += "/v1"
	}
	a := start(t, os.Interrupt, map[string]string{
		"LLM_PROXY_URL": proxyURL, "PORT": "0", "PYTHONDONTWRITEBYTECODE": "1",
	}, python, filepath.Join("python", agent))
	env := map[string]string{
		"MILLRACE_HTTP_ADDR": "127.0.0.1:0", "MILLRACE_LLM_PROXY_ADDR": proxy,
		"MILLRACE_HANDLER": "http", "MILLRACE_HANDLER_URL": a.await(t, `agent at (\S+)`),
	}
	for name, value := range vars {
		env[name] = value
	}
	u := &upProcess{process: start(t, syscall.SIGTERM, env, millrace, "up", "--llm-latency", "5ms")}
	u.api = u.await(t, `API +(http://\S+)`)
	if _, other := vars["MILLRACE_LLM_ANTHROPIC_BASE_URL"]; !other { // with a provider, none is simulated
		u.simulator = u.await(t, `simulator +(http://\S+)`)
	}
	u.kafka = u.await(t, `Kafka .*? on (127\.0\.0\.1:\d+)`)
	return u
}

func TestProducersInEveryLanguage(t *testing.T) {
	needTools(t, "python3", "curl", "kcat", "java", "mvn")
	python := pythonWithPackages(t)
	up := startUp(t, buildMillrace(t), python, "agent.py", nil)
	results := start(t, os.Interrupt, map[string]string{"MILLRACE_KAFKA_BROKERS": up.kafka}, buildGo(t, "./go/results"))

	producers := []struct {
		name         string
		conversation string
		command      []string
	}{
		{"curl", "ticket-1001", []string{"sh", "shell/submit.sh"}},
		{"kcat", "ticket-1002", []string{"sh", "shell/kcat.sh"}},
		{"Python", "ticket-1003", []string{"python3", "python/submit.py"}},
		{"Python to Kafka", "ticket-1004", []string{python, "python/submit_kafka.py"}},
		{"Java", "ticket-1005", []string{"java", "java/Submit.java"}},
		{"Java to Kafka", "ticket-1006", []string{
			"mvn", "-q", "-B", "-Dstyle.color=never", "-f", filepath.Join(copyFolder(t, "java/kafka"), "pom.xml"), "compile", "exec:java",
		}},
		{"Go", "ticket-1007", []string{buildGo(t, "./go/submit")}},
	}
	produce := func(t *testing.T, command []string) millrace.TaskResult {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Env = environ(map[string]string{"MILLRACE_URL": up.api, "MILLRACE_KAFKA_BROKERS": up.kafka})
		// Maven may leave a terminal's escape sequence before what the program prints.
		out := runOnce(t, cmd)
		return decode[millrace.TaskResult](t, out[max(bytes.IndexByte(out, '{'), 0):bytes.LastIndexByte(out, '}')+1])
	}
	printed := make(map[string]millrace.TaskResult)
	for _, producer := range producers {
		t.Run(producer.name, func(t *testing.T) {
			calls := llmCalls(t, up.simulator)
			got := produce(t, producer.command)
			text := checkAnswer(t, up.api, producer.conversation, &got)
			if n := llmCalls(t, up.simulator) - calls; n != 1 {
				t.Errorf("%d calls at the provider, want 1", n)
			}
			results.await(t, `(?m)^`+got.TaskID+` `+producer.conversation+` completed 1 .*`+`$`)
			printed[producer.name] = got
			t.Logf("%s: %s", got.TaskID, text)
		})
	}
	for _, producer := range producers {
		t.Run(producer.name+" again", func(t *testing.T) {
			first := printed[producer.name]
			again := produce(t, producer.command)
			if again.TaskID != first.TaskID || !again.FinishedAt.Equal(first.FinishedAt) {
				t.Errorf("sent again: %+v, first: %+v", again, first)
			}
		})
	}

	// A second turn in each conversation comes after the repeats and has all that
	// the first left behind, once.
	for _, producer := range producers {
		task := map[string]any{"conversation": producer.conversation, "type": "chat.message", "payload": map[string]string{"text": "Anything new?"}}
		r := submit(t, up.api, task)
		if c := conversationOf(t, up.api, producer.conversation); r.Status != millrace.StatusCompleted || c.Length != 4 || string(c.State) != `{"turns": 2}` && string(c.State) != `{"turns":2}` {
			t.Errorf("%s: second turn %s, %d messages, state %s", producer.conversation, r.Status, c.Length, c.State)
		}
		results.await(t, `(?m)^`+r.TaskID+` .*`+`$`)
	}
	checkPartitions(t, up.kafka, 3*len(producers)) // sent, sent again, and the second turn
	for name, r := range printed {
		if n := strings.Count(results.out.String(), r.TaskID+" "); n != 1 {
			t.Errorf("%s: %d results in the topic, want 1", name, n)
		}
	}
}

func TestPythonAgentRefusesAndRunsUnkeyedTasks(t *testing.T) {
	needTools(t, "python3")
	up := startUp(t, buildMillrace(t), pythonWithPackages(t), "agent.py", nil)

	r := submit(t, up.api, map[string]any{"conversation": "c", "type": "t", "payload": []int{1}})
	if r.Status != millrace.StatusFailed || r.Attempts != 1 || !strings.Contains(r.Error, "want a payload such as") {
		t.Errorf("a payload without text: %+v", r)
	}
	r = submit(t, up.api, map[string]any{"conversation": nil, "type": "t", "payload": map[string]string{"text": "hello"}})
	if r.Status != millrace.StatusCompleted || textOf(t, &r) == "" {
		t.Errorf("without a conversation: %+v", r)
	}
}

func TestAgentOnAnthropicsSDK(t *testing.T) {
	needTools(t, "python3")
	simulator := startSimulator(t)
	up := startUp(t, buildMillrace(t), pythonWithPackages(t), "agent_anthropic.py", map[string]string{
		"MILLRACE_LLM_ANTHROPIC_BASE_URL": simulator, "MILLRACE_LLM_ANTHROPIC_API_KEY": "simulated",
	})
	for _, text := range []string{"Where is my order?", "And the other one?"} {
		r := submit(t, up.api, map[string]any{"conversation": "c", "type": "t", "payload": map[string]string{"text": text}})
		if r.Status != millrace.StatusCompleted || textOf(t, &r) == "" || r.Usage.Calls != 1 {
			t.Errorf("%+v", r)
		}
	}
	if c := conversationOf(t, up.api, "c"); c.Length != 4 {
		t.Errorf("%d messages, want 4", c.Length)
	}
	if n := llmCalls(t, simulator); n != 2 {
		t.Errorf("%d calls at the provider, want 2", n)
	}
}

// TestGoHandler runs the handler as a worker of its own beside the processes of
// an installation.
func TestGoHandler(t *testing.T) {
	services := startServices(t)
	simulator := startSimulator(t)
	vars := installation(services)
	vars["MILLRACE_LLM_TEST_BASE_URL"], vars["MILLRACE_LLM_TEST_API_KEY"], vars["MILLRACE_LLM_MODEL"] = simulator, "simulated", "test/simulated-model"
	api := startIngest(t, vars)
	start(t, syscall.SIGTERM, vars, buildAsOtherModule(t))

	r := submit(t, api, map[string]any{"conversation": "ticket-1", "type": "chat.message", "payload": map[string]string{"text": "Where is my order?"}})
	checkAnswer(t, api, "ticket-1", &r)
	if n := llmCalls(t, simulator); n != 1 {
		t.Errorf("%d calls at the provider, want 1", n)
	}
}

// TestGoHandlerWithTablesOfItsOwn runs the worker that takes orders.
func TestGoHandlerWithTablesOfItsOwn(t *testing.T) {
	services := startServices(t)
	vars := installation(services)
	api := startIngest(t, vars)
	db, err := pgx.Connect(t.Context(), services.Postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(context.WithoutCancel(t.Context())) })
	schema, err := os.ReadFile("go/orders/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), string(schema)); err != nil {
		t.Fatal(err)
	}
	start(t, syscall.SIGTERM, vars, buildGo(t, "./go/orders"))

	order := func(n int) millrace.TaskResult {
		return submit(t, api, map[string]any{"conversation": "customer-1", "type": "order", "payload": map[string]any{"item": "lamp", "quantity": n}})
	}
	if r := order(7); r.Status != millrace.StatusCompleted || string(r.Result) != `{"left":3}` {
		t.Errorf("7 of 10: %+v", r)
	}
	if r := order(4); r.Status != millrace.StatusFailed || !strings.Contains(r.Error, "not 4") {
		t.Errorf("4 of 3: %+v", r)
	}
	if r := order(3); r.Status != millrace.StatusCompleted || string(r.Result) != `{"left":0}` {
		t.Errorf("3 of 3: %+v", r)
	}
	var taken, left int
	if err := db.QueryRow(t.Context(), `SELECT (SELECT sum(quantity) FROM shop.orders), (SELECT sum(quantity) FROM shop.stock)`).Scan(&taken, &left); err != nil {
		t.Fatal(err)
	}
	if taken != 10 || left != 0 {
		t.Errorf("%d ordered, %d left; want all 10 ordered", taken, left)
	}
	if n := conversationOf(t, api, "customer-1").Length; n != 2 {
		t.Errorf("%d messages, want one for each order that was placed", n)
	}
}

func startServices(t *testing.T) *embedded.Services {
	t.Helper()
	services, err := embedded.Start(t.Context(), embedded.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := services.Close(); err != nil {
			t.Error(err)
		}
	})
	return services
}

// installation returns the settings of processes on these services.
func installation(services *embedded.Services) map[string]string {
	return map[string]string{
		"MILLRACE_KAFKA_BROKERS": services.Kafka.Addr(), "MILLRACE_REDIS_URL": services.Redis.URL(), "MILLRACE_POSTGRES_URL": services.Postgres.URL(),
		"MILLRACE_PARTITIONS": "4", "MILLRACE_HTTP_ADDR": "127.0.0.1:0", "MILLRACE_LLM_PROXY_ADDR": "off",
	}
}

// startIngest prepares an installation and returns the URL of its API.
func startIngest(t *testing.T, vars map[string]string) (api string) {
	t.Helper()
	binary := buildMillrace(t)
	for _, command := range []string{"migrate", "topics"} {
		cmd := exec.CommandContext(t.Context(), binary, command)
		cmd.Env = environ(vars)
		runOnce(t, cmd)
	}
	ingest := start(t, syscall.SIGTERM, vars, binary, "ingest")
	return "http://" + ingest.await(t, `(127\.0\.0\.1:\d+)`)
}

// buildAsOtherModule builds the handler the way that a program of another module
// does, by the commands that the README shows.
func buildAsOtherModule(t *testing.T) string {
	t.Helper()
	folder := copyFolder(t, "go/handler")
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	goRun := func(dir string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = dir, environ(map[string]string{"GOWORK": "off", "GOFLAGS": "-mod=mod"})
		return strings.TrimSpace(string(runOnce(t, cmd)))
	}
	module := goRun(root, "list", "-m")
	goRun(folder, "mod", "init", "example.com/handler")
	goRun(folder, "mod", "edit", "-require", module+"@v0.0.0", "-replace", module+"="+root)
	goRun(folder, "mod", "tidy")
	goRun(folder, "build", "-o", "handler", ".")
	return filepath.Join(folder, "handler")
}

// checkPartitions reads the tasks and fails unless each conversation has one
// partition, whatever client produced them.
func checkPartitions(t *testing.T, kafka string, tasks int) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka), kgo.ConsumeTopics("millrace.tasks.normal"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	partitions := make(map[string]int32)
	for seen := 0; seen < tasks; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d of %d tasks read: %v", seen, tasks, err)
		}
		for record := range fetches.RecordsAll() {
			seen++
			key := string(record.Key)
			if p, ok := partitions[key]; ok && p != record.Partition {
				t.Errorf("tasks of %s are in partitions %d and %d", key, p, record.Partition)
			}
			partitions[key] = record.Partition
		}
	}
}

func startSimulator(t *testing.T) string {
	t.Helper()
	s, err := sim.New(sim.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	return server.URL
}

// checkAnswer checks a completed turn from outside and returns the answer.
func checkAnswer(t *testing.T, api, conversation string, got *millrace.TaskResult) string {
	t.Helper()
	text := textOf(t, got)
	if got.Status != millrace.StatusCompleted || got.ConversationID != conversation || got.Attempts != 1 || text == "" {
		t.Errorf("result %+v", got)
	}
	if got.Usage.Calls != 1 || got.Usage.InputTokens == 0 || got.Usage.OutputTokens == 0 {
		t.Errorf("usage %+v: the call has not gone by the worker", got.Usage)
	}
	kept := decode[millrace.TaskResult](t, request(t, http.MethodGet, api+"/v1/tasks/"+got.TaskID, nil))
	if kept.Status != got.Status || textOf(t, &kept) != text {
		t.Errorf("the API says %+v, the producer %+v", kept, got)
	}
	messages := conversationOf(t, api, conversation).Messages
	want := []string{"user: Where is my order?", "assistant: " + text}
	said := make([]string, len(messages))
	for i, m := range messages {
		said[i] = m.Role + ": " + m.Content
	}
	if !slices.Equal(said, want) {
		t.Errorf("the history is %q, want %q", said, want)
	}
	return text
}

func textOf(t *testing.T, r *millrace.TaskResult) string {
	t.Helper()
	if r.Result == nil {
		t.Fatalf("no result: %+v", r)
	}
	return decode[struct {
		Text string `json:"text"`
	}](t, r.Result).Text
}

// submit sends a task and returns its result.
func submit(t *testing.T, api string, task any) millrace.TaskResult {
	t.Helper()
	body, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	accepted := decode[millrace.TaskResult](t, request(t, http.MethodPost, api+"/v1/tasks", bytes.NewReader(body)))
	return decode[millrace.TaskResult](t, request(t, http.MethodGet, api+"/v1/tasks/"+accepted.TaskID+"?wait=60s", nil))
}

type conversation struct {
	Length   int64              `json:"length"`
	State    json.RawMessage    `json:"state"`
	Messages []millrace.Message `json:"messages"`
}

func conversationOf(t *testing.T, api, id string) conversation {
	t.Helper()
	return decode[conversation](t, request(t, http.MethodGet, api+"/v1/conversations/"+id, nil))
}

func llmCalls(t *testing.T, simulator string) int64 {
	t.Helper()
	return decode[sim.Summary](t, request(t, http.MethodGet, simulator+"/ledger/summary", nil)).Calls
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return v
}

func request(t *testing.T, method, url string, body io.Reader) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // leaves no idle connection behind
	req.Header.Set("Content-Type", millrace.JSON)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s: %s %v", method, url, resp.Status, answer, err)
	}
	return answer
}
