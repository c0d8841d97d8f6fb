package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"millrace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func problems(t *testing.T, err error) []Problem {
	t.Helper()
	if err == nil {
		return nil
	}
	var invalid *InvalidError
	if !errors.As(err, &invalid) {
		t.Fatalf("got %T, want an InvalidError", err)
	}
	return invalid.Problems
}

func TestDefaultsAreValidForEveryRole(t *testing.T) {
	addresses := map[Role]string{
		RoleTool: "", RoleUp: "127.0.0.1:8080", RoleIngest: "127.0.0.1:8080", RoleWorker: "127.0.0.1:8081",
		RoleRelay: "127.0.0.1:8082", RoleSimulator: "127.0.0.1:8089",
	}
	for _, role := range Roles() {
		s, err := Load(nil, role)
		if err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if want, ok := addresses[role]; !ok || s.HTTPAddr != want {
			t.Errorf("%s: address %q, want %q", role, s.HTTPAddr, want)
		}
	}
	s, _ := Load(nil, RoleWorker)
	if s.Slots != 100 || s.Partitions != 60 || s.DrainTimeout != 25*time.Second || !bool(s.Results) || bool(s.KafkaTLS) {
		t.Errorf("defaults are not the documented ones: %+v", s)
	}
	if !slices.Equal(s.Priorities, millrace.DefaultPriorities()) {
		t.Errorf("priorities %q", s.Priorities)
	}
	if s.Reserved[millrace.High] != 10 || len(s.Reserved) != 1 {
		t.Errorf("reserved %v, want a tenth of the slots for high", s.Reserved)
	}
	if up, _ := Load(nil, RoleUp); up.Partitions != 12 {
		t.Errorf("up: %d partitions, want 12", up.Partitions)
	}
}

func TestAllInvalidSettingsAreReportedTogether(t *testing.T) {
	_, err := Load([]string{"MILLRACE_SLOTS=x", "MILLRACE_HTTP_ADDR=y", "MILLRACE_HANDLER=z"}, RoleWorker)
	want := []string{
		`MILLRACE_HANDLER="z": want echo, agent or http`,
		`MILLRACE_HTTP_ADDR="y": want host:port, such as 127.0.0.1:8080, or :8080 for all addresses of the machine`,
		`MILLRACE_SLOTS="x": want a whole number from 1 to 100000`,
	}
	if got := problems(t, err); len(got) != 3 {
		t.Fatalf("got %d problems, want 3: %v", len(got), err)
	}
	if got := err.Error(); got != "invalid settings:\n"+strings.Join(want, "\n") {
		t.Errorf("got:\n%s", got)
	}
}

func TestInvalidSettings(t *testing.T) {
	folder := t.TempDir()
	empty := filepath.Join(folder, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	notYAML, unknownPriority := filepath.Join(folder, "passwd"), filepath.Join(folder, "rules.yaml")
	for path, content := range map[string]string{
		notYAML:         "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/false\n",
		unknownPriority: "rules:\n  - name: a\n    when: size > 1\n    priority: urgent\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		role Role
		env  string // separated by spaces
		name string
		want string // part of the reason
	}{
		{RoleTool, "SLOTS=0", "SLOTS", "from 1 to 100000"},
		{RoleTool, "SLOTS=1.5", "SLOTS", "whole number"},
		{RoleTool, "SLOTS=99999999999999999999", "SLOTS", "whole number"},
		{RoleTool, "MAX_ATTEMPTS=101", "MAX_ATTEMPTS", "from 1 to 100"},
		{RoleTool, "RESULTS=maybe", "RESULTS", "on or off"},
		{RoleTool, "DRAIN_TIMEOUT=25", "DRAIN_TIMEOUT", "duration such as"},
		{RoleTool, "DRAIN_TIMEOUT=-1s", "DRAIN_TIMEOUT", "from 0s"},
		{RoleTool, "RETENTION_COMPLETIONS=168h", "RETENTION_COMPLETIONS", "336h0m0s or more"},
		{RoleTool, "RETENTION_CONVERSATIONS=1h", "RETENTION_CONVERSATIONS", "24h0m0s or more"},
		{RoleTool, "RETENTION_DEAD_LETTERS=1m", "RETENTION_DEAD_LETTERS", "24h0m0s or more"},
		{RoleTool, "RETENTION_STEPS=0s", "RETENTION_STEPS", "from 24h"},
		{RoleWorker, "RETENTION_STEPS=24h MAX_ATTEMPTS=24 TYPE_TIMEOUTS=slow=1h", "RETENTION_STEPS", "may be tried for 24h24m0s"},
		{RoleTool, "RETRY_MIN=2m", "RETRY_MIN", "at most MILLRACE_RETRY_MAX"},
		{RoleTool, "KAFKA_BROKERS=a:9092,b", "KAFKA_BROKERS", "host:port"},
		{RoleTool, "KAFKA_BROKERS=a:0", "KAFKA_BROKERS", "host:port"},
		{RoleTool, "KAFKA_SASL_MECHANISM=PLAIN KAFKA_PASSWORD=p", "KAFKA_USERNAME", "missing"},
		{RoleTool, "KAFKA_SASL_MECHANISM=PLAIN KAFKA_USERNAME=p", "KAFKA_PASSWORD", "missing"},
		{RoleTool, "KAFKA_USERNAME=u", "KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"},
		{RoleTool, "KAFKA_TLS_CA_FILE=" + empty, "KAFKA_TLS_CA_FILE", "MILLRACE_KAFKA_TLS=on"},
		{RoleTool, "KAFKA_TLS=on KAFKA_TLS_CA_FILE=" + folder, "KAFKA_TLS_CA_FILE", "folder"},
		{RoleTool, "KAFKA_TLS=on KAFKA_TLS_CERT_FILE=" + empty, "KAFKA_TLS_CERT_FILE", "together"},
		{RoleTool, "RULES_FILE=/nowhere/rules.yaml", "RULES_FILE", "no such file"},
		{RoleIngest, "RULES_FILE=" + notYAML, "RULES_FILE", "rules"},
		{RoleIngest, "RULES_FILE=" + unknownPriority, "RULES_FILE", unknownPriority + ":4:"},
		{RoleWorker, "LIMITS_FILE=" + notYAML, "LIMITS_FILE", "line 1"},
		{RoleWorker, "LIMITS_FILE=" + unknownPriority, "LIMITS_FILE", "rules"},
		{RoleWorker, "LIMITS_FILE=" + empty, "LIMITS_FILE", "empty"},
		{RoleTool, "TOPIC_PREFIX=a/b", "TOPIC_PREFIX", "letters"},
		{RoleTool, "REDIS_URL=localhost:6379", "REDIS_URL", "redis://"},
		{RoleTool, "REDIS_URL=redis://localhost/x", "REDIS_URL", "redis://"},
		{RoleTool, "REDIS_CA_FILE=" + empty, "REDIS_CA_FILE", "rediss://"},
		{RoleTool, "REDIS_URL=rediss://h REDIS_CA_FILE=" + empty, "REDIS_URL", "PEM"},
		{RoleTool, "REDIS_URL=redis://:a@h REDIS_PASSWORD=b", "REDIS_PASSWORD", "one of the two"},
		{RoleTool, "REDIS_URL=rediss://h REDIS_CERT_FILE=" + empty, "REDIS_CERT_FILE", "together"},
		{RoleTool, "REDIS_URL=rediss://h REDIS_CERT_FILE=" + empty + " REDIS_KEY_FILE=" + empty, "REDIS_URL", "REDIS_CERT_FILE"},
		{RoleTool, "REDIS_KEY_FILE=" + empty, "REDIS_KEY_FILE", "rediss://"},
		{RoleTool, "REDIS_TLS_SERVER_NAME=h", "REDIS_TLS_SERVER_NAME", "rediss://"},
		{RoleTool, "REDIS_MODE=ring", "REDIS_MODE", "single, cluster or sentinel"},
		{RoleTool, "REDIS_MODE=cluster REDIS_URL=h1:1,h2:1", "REDIS_URL", "addr="},
		{RoleTool, "REDIS_MODE=cluster REDIS_URL=redis://h/1", "REDIS_URL", "only database 0"},
		{RoleTool, "REDIS_MODE=cluster REDIS_URL=redis://h?read_only=true", "REDIS_URL", "replicas"},
		{RoleTool, "REDIS_MODE=cluster REDIS_URL=redis://h?route_by_latency=true", "REDIS_URL", "replicas"},
		{RoleTool, "REDIS_MODE=sentinel REDIS_URL=redis://h", "REDIS_URL", "master_name"},
		{RoleTool, "REDIS_MODE=sentinel REDIS_URL=redis://h?master_name=m&replica_only=true", "REDIS_URL", "replicas"},
		{RoleTool, "REDIS_MODE=sentinel REDIS_URL=redis://h?master_name=m&password=a REDIS_PASSWORD=b", "REDIS_PASSWORD", "one of the two"},
		{RoleTool, "REDIS_MODE=sentinel REDIS_URL=redis://:a@h?master_name=m REDIS_SENTINEL_PASSWORD=b", "REDIS_SENTINEL_PASSWORD", "one of the two"},
		{RoleTool, "REDIS_SENTINEL_PASSWORD=b", "REDIS_SENTINEL_PASSWORD", "MILLRACE_REDIS_MODE=sentinel"},
		{RoleTool, "POSTGRES_URL=mysql://h/db", "POSTGRES_URL", "postgres://"},
		{RoleTool, "POSTGRES_URL=postgres://h:x/db", "POSTGRES_URL", "postgres://"},
		{RoleTool, "POSTGRES_URL=postgres://h/db?sslmode=perhaps", "POSTGRES_URL", "sslmode"},
		{RoleTool, "POSTGRES_URL=postgres://u:a@h/db POSTGRES_PASSWORD=b", "POSTGRES_PASSWORD", "one of the two"},
		{RoleTool, "HTTP_ADDR=1.2.3.4", "HTTP_ADDR", "host:port"},
		{RoleTool, "HTTP_ADDR=:70000", "HTTP_ADDR", "host:port"},
		{RoleTool, "URL=127.0.0.1:8080", "URL", "http://"},
		{RoleIngest, "HTTP_ADDR=:8080", "HTTP_ADDR", "MILLRACE_AUTH=trust-network"},
		{RoleUp, "HTTP_ADDR=0.0.0.0:8080", "HTTP_ADDR", "MILLRACE_AUTH=trust-network"},
		{RoleTool, "PRIORITIES=high,High", "PRIORITIES", "lower-case"},
		{RoleTool, "PRIORITIES=high,high", "PRIORITIES", "twice"},
		{RoleTool, "PRIORITIES=,", "PRIORITIES", "characters"},
		{RoleTool, "RESERVED=high", "RESERVED", "priority=slots"},
		{RoleTool, "RESERVED=high=-1", "RESERVED", "number of slots"},
		{RoleTool, "RESERVED=high=1,high=2", "RESERVED", "twice"},
		{RoleTool, "RESERVED=urgent=1", "RESERVED", "not among"},
		{RoleTool, "RESERVED=high=60,normal=60", "RESERVED", "120 slots of 100"},
		{RoleTool, "TYPE_TIMEOUTS=summarize", "TYPE_TIMEOUTS", "type=duration"},
		{RoleTool, "TYPE_TIMEOUTS=summarize=30", "TYPE_TIMEOUTS", "no duration"},
		{RoleTool, "TYPE_TIMEOUTS=summarize=1ms", "TYPE_TIMEOUTS", "no duration"},
		{RoleTool, "TYPE_TIMEOUTS=a=1m,a=2m", "TYPE_TIMEOUTS", "twice"},
		{RoleTool, "TYPE_TIMEOUTS==1m", "TYPE_TIMEOUTS", "no task type"},
		{RoleTool, "STUCK_LIMIT=0s", "STUCK_LIMIT", "duration"},
		{RoleTool, "POOL=a.b", "POOL", "lower-case"},
		{RoleTool, "WORKER_NAME=a/b", "WORKER_NAME", "letters"},
		{RoleWorker, "HANDLER=http", "HANDLER_URL", "missing"},
		{RoleTool, "HANDLER_URL=ftp://h", "HANDLER_URL", "http://"},
		{RoleWorker, "HANDLER=agent LLM_LOCAL_BASE_URL=http://h/v1", "LLM_MODEL", "missing"},
		{RoleWorker, "HANDLER=agent LLM_MODEL=m", "LLM_<NAME>_BASE_URL", "missing"},
		{RoleTool, "LLM_PROXY_ADDR=:8090", "LLM_PROXY_ADDR", "loopback"},
		{RoleTool, "LLM_LOCAL_API_KEY=k", "LLM_LOCAL_BASE_URL", "missing"},
		{RoleTool, "LLM_LOCAL_BASE_URL=h", "LLM_LOCAL_BASE_URL", "http://"},
		{RoleTool, "LLM_OPENAI_KIND=cohere", "LLM_OPENAI_KIND", "anthropic"},
		{RoleTool, "LLM_a_BASE_URL=http://h", "LLM_a_BASE_URL", "capital letters"},
		{RoleTool, "LLM__BASE_URL=http://h", "LLM__BASE_URL", "capital letters"},
		{RoleTool, "KAFKA_PASSWORD_FILE=" + empty + " KAFKA_SASL_MECHANISM=PLAIN KAFKA_USERNAME=u", "KAFKA_PASSWORD_FILE", "empty"},
		{RoleTool, "REDIS_PASSWORD=a REDIS_PASSWORD_FILE=" + empty, "REDIS_PASSWORD_FILE", "one of the two"},
		{RoleTool, "KAFKA_BROKER=h:1", "KAFKA_BROKER", "MILLRACE_KAFKA_BROKERS"},
		{RoleTool, "SLOST=1", "SLOST", "MILLRACE_SLOTS"},
		{RoleTool, "POSTGRES_URL_FIEL=/x", "POSTGRES_URL_FIEL", "MILLRACE_POSTGRES_URL_FILE"},
		{RoleTool, "WHATEVER=1", "WHATEVER", "millrace config"},
	}
	for _, test := range tests {
		t.Run(test.env, func(t *testing.T) {
			_, err := Load(environ(test.env), test.role)
			for _, p := range problems(t, err) {
				if p.Name == Prefix+test.name && strings.Contains(p.Reason, test.want) {
					return
				}
			}
			t.Errorf("want %s to be reported with %q, got %v", test.name, test.want, err)
		})
	}
}

func TestValidSettings(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(rules, []byte("rules:\n  - name: a\n    when: size > 1\n    priority: batch\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		role Role
		env  string
		ok   func(s Settings) bool
	}{
		{RoleIngest, "HTTP_ADDR=:8080 AUTH=trust-network", func(s Settings) bool { return s.HTTPAddr == ":8080" }},
		{RoleIngest, "HTTP_ADDR=[::1]:0", func(s Settings) bool { return s.HTTPAddr == "[::1]:0" }},
		{RoleIngest, "HTTP_ADDR=localhost:0", func(s Settings) bool { return s.HTTPAddr == "localhost:0" }},
		// The rules of an installation, in a pool that serves but some of its priorities.
		{RoleWorker, "PRIORITIES=high RULES_FILE=" + rules, func(s Settings) bool { return s.RulesFile == rules }},
		{RoleWorker, "HTTP_ADDR=:8081", func(s Settings) bool { return s.HTTPAddr == ":8081" }},
		{RoleTool, "KAFKA_BROKERS=a:1,b:2", func(s Settings) bool { return slices.Equal(s.KafkaBrokers, []string{"a:1", "b:2"}) }},
		{RoleTool, "KAFKA_SASL_MECHANISM=plain KAFKA_USERNAME=u KAFKA_PASSWORD=p", func(s Settings) bool { return s.KafkaSASLMechanism == "PLAIN" }},
		{RoleTool, "PRIORITIES=urgent,rest", func(s Settings) bool {
			return slices.Equal(s.TaskTopics(), []string{"millrace.tasks.urgent", "millrace.tasks.rest"}) && s.Reserved["urgent"] == 10
		}},
		{RoleWorker, "RETENTION_COMPLETIONS=336h RETENTION_DEAD_LETTERS=24h RETENTION_STEPS=24h", func(s Settings) bool {
			return s.RetentionCompletions == 336*time.Hour && s.RetentionConversations == 0 && s.RetentionSteps == 24*time.Hour
		}},
		{RoleTool, "SLOTS=5", func(s Settings) bool { return len(s.Reserved) == 0 }},
		{RoleTool, "RESERVED=none", func(s Settings) bool { return len(s.Reserved) == 0 }},
		{RoleTool, "RESERVED=high=20,normal=5", func(s Settings) bool { return s.Reserved["high"] == 20 && s.Reserved["normal"] == 5 }},
		{RoleTool, "TYPE_TIMEOUTS=summarize=30s,deep=research=20m", func(s Settings) bool {
			return len(s.TypeTimeouts) == 2 && s.TypeTimeouts["summarize"] == 30*time.Second && s.TypeTimeouts["deep=research"] == 20*time.Minute
		}},
		{RoleTool, "RELAY=off RESULTS=false KAFKA_TLS=ON", func(s Settings) bool { return !bool(s.Relay) && !bool(s.Results) && bool(s.KafkaTLS) }},
		{RoleTool, "SLOTS= HANDLER=", func(s Settings) bool { return s.Slots == 100 && s.Handler == "echo" }},
		{RoleTool, "TEST_KAFKA_IMAGE=x", func(Settings) bool { return true }},
		{RoleTool, "TOPIC_PREFIX=staging. POOL=gpu", func(s Settings) bool {
			return s.Group() == "staging.gpu" && s.ResultsTopic() == "staging.results" && s.DeadLetterTopic() == "staging.dlq"
		}},
		{RoleWorker, "HANDLER=agent LLM_MODEL=m LLM_OPENAI_API_KEY=k LLM_OWN_GPU_BASE_URL=http://h/v1/", func(s Settings) bool {
			return slices.Equal(s.LLMProviders, []LLMProvider{
				{Name: "openai", Kind: "openai", BaseURL: "https://api.openai.com/v1", APIKey: "k"},
				{Name: "own_gpu", Kind: "openai", BaseURL: "http://h/v1"},
			})
		}},
		{RoleTool, "LLM_ANTHROPIC_API_KEY=k", func(s Settings) bool { return s.LLMProviders[0].Kind == "anthropic" }},
		{RoleTool, "REDIS_URL=rediss://user:p%40ss@h:1/2", func(s Settings) bool {
			o, err := s.singleOptions()
			return err == nil && o.Username == "user" && o.Password == "p@ss" && o.DB == 2 && o.TLSConfig != nil
		}},
		{RoleTool, "REDIS_URL=redis://user@h REDIS_PASSWORD=p", func(s Settings) bool {
			o, err := s.singleOptions()
			return err == nil && o.Username == "user" && o.Password == "p"
		}},
		{RoleTool, "REDIS_MODE=cluster REDIS_URL=rediss://user@h1?addr=h2:2&addr=h3:3 REDIS_PASSWORD=p", func(s Settings) bool {
			o, err := s.clusterOptions()
			return err == nil && slices.Equal(o.Addrs, []string{"h1:6379", "h2:2", "h3:3"}) && o.Username == "user" && o.Password == "p" &&
				o.TLSConfig != nil && o.TLSConfig.ServerName == ""
		}},
		{RoleTool, "REDIS_MODE=cluster REDIS_URL=rediss://h1/0 REDIS_TLS_SERVER_NAME=all", func(s Settings) bool {
			o, err := s.clusterOptions()
			return err == nil && o.TLSConfig.ServerName == "all"
		}},
		{RoleTool, "REDIS_MODE=sentinel REDIS_URL=redis://h1:1/3?master_name=m&addr=h2:2&username=user REDIS_PASSWORD=p REDIS_SENTINEL_PASSWORD=s", func(s Settings) bool {
			o, err := s.failoverOptions()
			return err == nil && slices.Equal(o.SentinelAddrs, []string{"h1:1", "h2:2"}) && o.MasterName == "m" && o.DB == 3 &&
				o.Username == "user" && o.Password == "p" && o.SentinelPassword == "s"
		}},
		{RoleTool, "POSTGRES_URL=postgres://u@h/db?sslmode=require POSTGRES_PASSWORD=p POSTGRES_MAX_CONNS=3", func(s Settings) bool {
			c, err := s.PostgresConfig()
			return err == nil && c.ConnConfig.Password == "p" && c.MaxConns == 3 && c.ConnConfig.TLSConfig != nil &&
				c.ConnConfig.ConnectTimeout == 5*time.Second && c.PingTimeout == 5*time.Second
		}},
		{RoleTool, "POSTGRES_URL=postgres://u@a:5433,[::1]:5434,c/db?sslmode=disable&target_session_attrs=read-write&connect_timeout=2 POSTGRES_PASSWORD=p", func(s Settings) bool {
			c, err := s.PostgresConfig()
			if err != nil {
				return false
			}
			hosts := []string{net.JoinHostPort(c.ConnConfig.Host, strconv.Itoa(int(c.ConnConfig.Port)))}
			for _, f := range c.ConnConfig.Fallbacks {
				hosts = append(hosts, net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))))
			}
			return slices.Equal(hosts, []string{"a:5433", "[::1]:5434", "c:5432"}) && c.ConnConfig.Password == "p" &&
				c.ConnConfig.ValidateConnect != nil && c.ConnConfig.ConnectTimeout == 2*time.Second
		}},
	}
	for _, test := range tests {
		t.Run(test.env, func(t *testing.T) {
			s, err := Load(environ(test.env), test.role)
			if err != nil {
				t.Fatal(err)
			}
			if !test.ok(s) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func TestSecretComesFromFileWithoutItsLineEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("postgres://u:hunter2@h/db\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load([]string{"MILLRACE_POSTGRES_URL_FILE=" + path, "MILLRACE_LLM_OPENAI_API_KEY_FILE=" + path}, RoleTool)
	if err != nil {
		t.Fatal(err)
	}
	if s.PostgresURL.Reveal() != "postgres://u:hunter2@h/db" || s.LLMProviders[0].APIKey != s.PostgresURL {
		t.Errorf("got %q and %q", s.PostgresURL.Reveal(), s.LLMProviders[0].APIKey.Reveal())
	}
}

func TestSecretsNeverShow(t *testing.T) {
	env := environ("POSTGRES_URL=postgres://u:hunter2@h/db?sslpassword=hunter2 REDIS_URL=redis://:hunter2@h KAFKA_SASL_MECHANISM=PLAIN " +
		"KAFKA_USERNAME=u KAFKA_PASSWORD=hunter2 LLM_OPENAI_API_KEY=hunter2")
	s, err := Load(env, RoleWorker)
	if err != nil {
		t.Fatal(err)
	}
	env = append(env, "MILLRACE_HANDLER_URL=http://u:hunter2@h/turn", "MILLRACE_LLM_LOCAL_BASE_URL=http://u:hunter2@h/v1",
		"MILLRACE_LLM_QUERY_BASE_URL=https://h/v1?key=hunter2", "MILLRACE_LLM_TOKEN_BASE_URL=https://hunter2@h/v1", "MILLRACE_URL=http://h/?hunter2;=#hunter2")
	withURLs, err := Load(env, RoleWorker)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	described, err := json.Marshal(Describe(withURLs, env))
	if err != nil {
		t.Fatal(err)
	}
	for how, shown := range map[string]string{
		"%v": fmt.Sprintf("%v", s), "%+v": fmt.Sprintf("%+v", s), "%#v": fmt.Sprintf("%#v", s), "%q": fmt.Sprintf("%q", s.KafkaPassword),
		"json": string(encoded), "described": string(described),
	} {
		if strings.Contains(shown, "hunter2") {
			t.Errorf("%s shows a secret: %s", how, shown)
		}
	}
	for plain, want := range map[string]string{
		"http://u:p@h:1/v1?key=k&a=b": "http://u:***@h:1/v1?a=***&key=***", "http://127.0.0.1:8080": "http://127.0.0.1:8080",
		"https://token@h/v1": "https://***@h/v1", "127.0.0.1:8080": "127.0.0.1:8080",
	} {
		if got := MaskURL(plain); got != want {
			t.Errorf("%s is shown as %s, want %s", plain, got, want)
		}
	}
	if got := s.PostgresURL.String(); got != "postgres://u:***@h/db?sslpassword=***" {
		t.Errorf("masked URL: %s", got)
	}

	for _, bad := range []string{
		"POSTGRES_URL=postgres://u:hunter2@h:x/db", "POSTGRES_URL=postgres://u:hunter2@h/db?sslmode=no", "POSTGRES_URL=hunter2",
		"POSTGRES_URL=postgres://u:hunter2%zz@h/db", "REDIS_URL=redis://u:hunter2@h/x", "REDIS_URL=hunter2", "REDIS_URL=redis://u:hunter2@h:x:y",
		"LLM_OPENAI_BASE_URL=ftp://u:hunter2@h", "KAFKA_PASSWORD=hunter2", "REDIS_URL=redis://:a@h REDIS_PASSWORD=hunter2",
		"REDIS_MODE=sentinel REDIS_URL=redis://h?master_name=m&password=hunter2&max_retries=x", "REDIS_MODE=cluster REDIS_URL=redis://u:hunter2@h/1",
		"HANDLER_URL=ftp://u:hunter2@h", "URL=ftp://u:hunter2@x", "URL=u:hunter2@x:1", "LLM_LOCAL_BASE_URL=h?key=hunter2",
		"KAFKA_BROKERS=kafka://u:hunter2@h:9092", "HTTP_ADDR=http://u:hunter2@h:80", "LLM_PROXY_ADDR=u:hunter2@h:80",
	} {
		_, err := Load(environ(bad), RoleWorker)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestDescribeListsEveryVariable(t *testing.T) {
	env := environ("SLOTS=7 LLM_OPENAI_API_KEY=k")
	s, err := Load(env, RoleTool)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]Setting)
	for _, one := range Describe(s, env) {
		if one.Meaning == "" {
			t.Errorf("%s has no meaning", one.Name)
		}
		seen[one.Name] = one
	}
	if got := seen["MILLRACE_SLOTS"]; got.Value != "7" || !got.Set || got.Default != "100" {
		t.Errorf("slots: %+v", got)
	}
	if got := seen["MILLRACE_POOL"]; got.Value != "default" || got.Set {
		t.Errorf("pool: %+v", got)
	}
	if got := seen["MILLRACE_LLM_OPENAI_API_KEY"]; got.Value != "***" || !got.Set {
		t.Errorf("provider key: %+v", got)
	}
}

func FuzzReserved(f *testing.F) {
	for _, seed := range []string{"high=10", "high=10,normal=5", "none", "=", "a=1,,", "x=9223372036854775808"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		var r Reserved
		if r.Decode(value) != nil {
			return
		}
		for p, n := range r {
			if n < 0 {
				t.Errorf("%q reserves %d slots for %q", value, n, p)
			}
		}
	})
}

func environ(pairs string) []string {
	var all []string
	for pair := range strings.FieldsSeq(pairs) {
		all = append(all, Prefix+pair)
	}
	return all
}

func TestInstallationsOnOneRedisHaveKeysOfTheirOwn(t *testing.T) {
	for prefix, want := range map[string]string{"": "millrace:", "millrace.": "millrace:", "staging.": "staging:", "a.b": "a.b:"} {
		var environ []string
		if prefix != "" {
			environ = append(environ, "MILLRACE_TOPIC_PREFIX="+prefix)
		}
		s, err := Load(environ, RoleWorker)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.RedisPrefix(); got != want {
			t.Errorf("topic prefix %q: Redis prefix %q, want %q", prefix, got, want)
		}
	}
}
