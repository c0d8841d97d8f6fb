package settings

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"time"

	"millrace"
)

// Prefix starts the name of every setting.
const Prefix = "MILLRACE_"

// Role is what a process is for. Some defaults and checks depend on it.
type Role string

// The roles. RoleTool is a command that serves nothing, such as topics.
const (
	RoleTool      Role = "tool"
	RoleUp        Role = "up"
	RoleIngest    Role = "ingest"
	RoleWorker    Role = "worker"
	RoleRelay     Role = "relay"
	RoleSimulator Role = "simulator"
)

// Roles returns all roles.
func Roles() []Role {
	return []Role{RoleTool, RoleUp, RoleIngest, RoleWorker, RoleRelay, RoleSimulator}
}

// serves reports whether the role accepts tasks over HTTP.
func (r Role) serves() bool { return r == RoleIngest || r == RoleUp }

// runs reports whether the role runs turns.
func (r Role) runs() bool { return r == RoleWorker || r == RoleUp }

// Settings is what an installation sets. The tags say how a variable is named,
// decoded and explained:
//
//	envconfig  the name without the prefix
//	default    the value of an unset variable, as text
//	desc       what it means, for people
//	oneof      the values it may take, separated by |
//	min, max   the range of a number or a duration, both included
//	file       "true": names a file that must be readable
//	secret     "true": may come from a file, and is never shown
//	shown      what to show as the default when it depends on other things
type Settings struct {
	// Kafka.
	KafkaBrokers       []string `envconfig:"KAFKA_BROKERS" default:"localhost:9092" desc:"Kafka brokers to start from, host:port, separated by commas"`
	KafkaTLS           OnOff    `envconfig:"KAFKA_TLS" default:"off" desc:"connect to Kafka with TLS"`
	KafkaTLSCAFile     string   `envconfig:"KAFKA_TLS_CA_FILE" file:"true" desc:"PEM file of the authorities that may sign a broker's certificate" shown:"the system's"`
	KafkaTLSCertFile   string   `envconfig:"KAFKA_TLS_CERT_FILE" file:"true" desc:"PEM file of the client certificate, when brokers ask for one"`
	KafkaTLSKeyFile    string   `envconfig:"KAFKA_TLS_KEY_FILE" file:"true" desc:"PEM file of the client certificate's key"`
	KafkaSASLMechanism string   `envconfig:"KAFKA_SASL_MECHANISM" default:"none" oneof:"none|PLAIN|SCRAM-SHA-256|SCRAM-SHA-512" desc:"how to log in to Kafka (PLAIN shows the password to the network unless TLS is on)"`
	KafkaUsername      string   `envconfig:"KAFKA_USERNAME" desc:"Kafka user"`
	KafkaPassword      Secret   `envconfig:"KAFKA_PASSWORD" secret:"true" desc:"Kafka password"`
	TopicPrefix        string   `envconfig:"TOPIC_PREFIX" default:"millrace." desc:"what the names of all topics, consumer groups, transactional ids and (without its last dot) Redis keys start with"`
	Partitions         int      `envconfig:"PARTITIONS" default:"60" min:"1" max:"10000" shown:"60 (up: 12)" desc:"partitions of every priority topic: the most workers that can share the work; fixed once the topics exist"`

	// Redis.
	RedisURL              Secret        `envconfig:"REDIS_URL" default:"redis://localhost:6379/0" secret:"true" desc:"Redis: redis:// or, with TLS, rediss://; an ACL user goes in the URL"`
	RedisMode             string        `envconfig:"REDIS_MODE" default:"single" oneof:"single|cluster|sentinel" desc:"what REDIS_URL names: one server; servers of a cluster, further ones as ?addr=host:port; or sentinels, with ?master_name=… and, for an ACL user of Redis itself, &username=…"`
	RedisPassword         Secret        `envconfig:"REDIS_PASSWORD" secret:"true" desc:"Redis password, when the URL has none"`
	RedisSentinelPassword Secret        `envconfig:"REDIS_SENTINEL_PASSWORD" secret:"true" desc:"password of the sentinels themselves, when the URL has none"`
	RedisCAFile           string        `envconfig:"REDIS_CA_FILE" file:"true" desc:"PEM file of the authorities that may sign the certificate of a rediss:// server" shown:"the system's"`
	RedisCertFile         string        `envconfig:"REDIS_CERT_FILE" file:"true" desc:"PEM file of the client certificate, when Redis asks for one"`
	RedisKeyFile          string        `envconfig:"REDIS_KEY_FILE" file:"true" desc:"PEM file of the client certificate's key"`
	RedisTLSServerName    string        `envconfig:"REDIS_TLS_SERVER_NAME" desc:"the name that the certificates of all Redis servers hold" shown:"each server's own address"`
	RedisDegraded         string        `envconfig:"REDIS_DEGRADED" default:"stop" oneof:"stop|run" desc:"without Redis: start no turn (stop), or go on from PostgreSQL (run); LLM calls under limits wait for Redis either way"`
	RedisTTL              time.Duration `envconfig:"REDIS_TTL" default:"24h" min:"1m" max:"8760h" desc:"how long an idle conversation stays in Redis; PostgreSQL keeps it for good"`

	// PostgreSQL.
	PostgresURL      Secret `envconfig:"POSTGRES_URL" default:"postgres://millrace@localhost:5432/millrace" secret:"true" desc:"PostgreSQL; TLS goes in the URL: ?sslmode=verify-full&sslrootcert=/ca.pem, and so do standbys: db1,db2/…?target_session_attrs=read-write"`
	PostgresPassword Secret `envconfig:"POSTGRES_PASSWORD" secret:"true" desc:"PostgreSQL password, when the URL has none"`
	PostgresMaxConns int    `envconfig:"POSTGRES_MAX_CONNS" default:"10" min:"2" max:"1000" desc:"connections to PostgreSQL that a process opens at most"`

	// HTTP.
	HTTPAddr        string `envconfig:"HTTP_ADDR" shown:"127.0.0.1 with port 8080 (up, ingest), 8081 (worker), 8082 (relay), 8089 (simulator)" desc:"address of the API, of health and of metrics, host:port; port 0 takes a free one"`
	Auth            string `envconfig:"AUTH" default:"off" oneof:"off|trust-network" desc:"who may send tasks: off lets in anybody, and is refused unless HTTP_ADDR is on loopback; trust-network lets in anybody who reaches the address"`
	MaxPayloadBytes int    `envconfig:"MAX_PAYLOAD_BYTES" default:"1048576" min:"1" max:"2031616" desc:"the largest payload of a task, in bytes"`
	URL             string `envconfig:"URL" default:"http://127.0.0.1:8080" desc:"the API that commands such as submit talk to"`

	// Tasks.
	Priorities []millrace.Priority `envconfig:"PRIORITIES" default:"high,normal,batch" desc:"the priorities, first served first, separated by commas; each has a topic; a worker may serve but some of them (see pools)"`
	RulesFile  string              `envconfig:"RULES_FILE" file:"true" desc:"YAML file of the rules that give a task its priority" shown:"what the sender wishes, else normal"`
	Results    OnOff               `envconfig:"RESULTS" default:"on" desc:"publish a result event for every finished task; off also gives up exactly-once for turns without effects, and the status of tasks that have not finished"`

	// Workers.
	Pool           string        `envconfig:"POOL" default:"default" desc:"the pool that a worker belongs to; its consumer group is the topic prefix and this"`
	WorkerName     string        `envconfig:"WORKER_NAME" shown:"made up at every start" desc:"name of a worker that keeps its partitions over a quick restart; unique in its pool"`
	Slots          int           `envconfig:"SLOTS" default:"100" min:"1" max:"100000" desc:"turns that a worker runs at once"`
	Reserved       Reserved      `envconfig:"RESERVED" shown:"a tenth of the slots for the first priority" desc:"slots that others never take from a priority, as high=10,normal=5; or none"`
	Handler        string        `envconfig:"HANDLER" default:"echo" oneof:"echo|agent|http" desc:"what runs turns: echo answers with the payload, agent asks the LLM, http posts the turn to HANDLER_URL"`
	HandlerURL     string        `envconfig:"HANDLER_URL" desc:"where the http handler posts turns"`
	HandlerTimeout time.Duration `envconfig:"HANDLER_TIMEOUT" default:"10m" min:"100ms" max:"24h" desc:"the longest that one attempt of a turn may take; one that takes longer has failed, whatever it returns"`
	TypeTimeouts   TypeTimeouts  `envconfig:"TYPE_TIMEOUTS" desc:"the same for tasks of a type, as summarize=30s,research=20m" shown:"HANDLER_TIMEOUT for all"`
	StuckAfter     time.Duration `envconfig:"STUCK_AFTER" default:"10s" min:"1s" max:"24h" desc:"how long a handler may go on after its time is up or its task is not its own any more, before it is logged and counted as stuck"`
	StuckLimit     time.Duration `envconfig:"STUCK_LIMIT" default:"5m" min:"1s" max:"24h" desc:"how long a handler may do so before /livez fails, because only a restart frees its slot"`
	MaxAttempts    int           `envconfig:"MAX_ATTEMPTS" default:"5" min:"1" max:"100" desc:"attempts of a task before it becomes a dead letter, unless the task says otherwise"`
	RetryMin       time.Duration `envconfig:"RETRY_MIN" default:"1s" min:"1ms" max:"1h" desc:"upper bound of the wait before the second attempt; it doubles with every further one"`
	RetryMax       time.Duration `envconfig:"RETRY_MAX" default:"1m" min:"1ms" max:"24h" desc:"upper bound of the wait before any attempt"`
	CacheBytes     int           `envconfig:"CACHE_BYTES" default:"67108864" min:"0" max:"1099511627776" desc:"bytes of conversations that a worker keeps in memory between their turns; 0 keeps none, so that every turn asks Redis"`
	DrainTimeout   time.Duration `envconfig:"DRAIN_TIMEOUT" default:"25s" min:"0s" max:"1h" desc:"how long running turns may go on after a stop signal"`

	// Outbox.
	Relay         OnOff  `envconfig:"RELAY" default:"on" desc:"publish outbox events from inside workers; off needs a millrace relay"`
	RelayDelivery string `envconfig:"RELAY_DELIVERY" default:"exactly-once" oneof:"exactly-once|at-least-once" desc:"exactly-once publishes in Kafka transactions, which read_committed readers need; at-least-once goes without, is faster, and repeats events when a relay dies"`

	// Retention.
	RetentionCompletions   time.Duration `envconfig:"RETENTION_COMPLETIONS" default:"0s" min:"0s" max:"876000h" desc:"how long results and statuses of finished tasks are kept; 0s: for ever; otherwise 336h or more, since a task whose record is delivered again behind it runs again"`
	RetentionConversations time.Duration `envconfig:"RETENTION_CONVERSATIONS" default:"0s" min:"0s" max:"876000h" desc:"how long a conversation that no turn changes keeps its history and state; 0s: for ever; otherwise 24h or more"`
	RetentionDeadLetters   time.Duration `envconfig:"RETENTION_DEAD_LETTERS" default:"0s" min:"0s" max:"876000h" desc:"how long dead letters are kept in PostgreSQL, from when they came or were redriven; 0s: for ever; otherwise 24h or more"`
	RetentionSteps         time.Duration `envconfig:"RETENTION_STEPS" default:"168h" min:"24h" max:"876000h" desc:"how long steps of tasks that have not completed are kept; longer than a task is tried, since one that goes is taken anew"`

	// LLM.
	LLMProviders []LLMProvider `ignored:"true"`
	LLMModel     string        `envconfig:"LLM_MODEL" desc:"the model that the agent handler asks"`
	LLMTimeout   time.Duration `envconfig:"LLM_TIMEOUT" default:"5m" min:"1s" max:"1h" desc:"the longest that one call to a provider may take"`
	LLMProxyAddr string        `envconfig:"LLM_PROXY_ADDR" default:"127.0.0.1:8090" desc:"loopback address of a worker's LLM proxy; port 0 takes a free one, off leaves it out"`
	LimitsFile   string        `envconfig:"LIMITS_FILE" file:"true" desc:"YAML file of the limits that providers set" shown:"no limits"`

	// Logs.
	LogLevel  string `envconfig:"LOG_LEVEL" default:"info" oneof:"trace|debug|info|warn|error" desc:"the least level that is logged"`
	LogFormat string `envconfig:"LOG_FORMAT" default:"json" oneof:"json|console" desc:"how log lines look"`
}

// roleDefaults are the defaults that differ between roles.
var roleDefaults = map[Role]map[string]string{
	RoleUp:        {"HTTP_ADDR": "127.0.0.1:8080", "PARTITIONS": "12"},
	RoleIngest:    {"HTTP_ADDR": "127.0.0.1:8080"},
	RoleWorker:    {"HTTP_ADDR": "127.0.0.1:8081"},
	RoleRelay:     {"HTTP_ADDR": "127.0.0.1:8082"},
	RoleSimulator: {"HTTP_ADDR": "127.0.0.1:8089"},
}

// Load reads the settings of a process with the given role from environ, which
// has the form of [os.Environ]. The error, if any, is an [*InvalidError] that
// holds everything that is wrong; the settings then are what could be read.
func Load(environ []string, role Role) (Settings, error) {
	l := &loader{env: environment(environ), role: role}
	var s Settings
	for _, f := range fields() {
		l.load(f, reflect.ValueOf(&s).Elem().Field(f.index))
	}
	s.LLMProviders = l.providers()
	l.unknown()
	l.check(&s)
	if len(l.problems) == 0 {
		return s, nil
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int { return strings.Compare(a.Name, b.Name) })
	return s, &InvalidError{Problems: l.problems}
}

// Problem is one thing that is wrong with the settings.
type Problem struct {
	// Name is the variable, with its prefix.
	Name string
	// Value is what it holds, masked if secret. Empty means unset.
	Value string
	// Reason says what is wrong and what is wanted.
	Reason string
}

func (p Problem) Error() string {
	if p.Value == "" {
		return p.Name + ": " + p.Reason
	}
	return p.Name + "=" + p.Value + ": " + p.Reason
}

// InvalidError holds all that is wrong with the settings.
type InvalidError struct {
	Problems []Problem
}

func (e *InvalidError) Error() string {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		errs[i] = p
	}
	return "invalid settings:\n" + errors.Join(errs...).Error()
}

func environment(environ []string) map[string]string {
	env := make(map[string]string)
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if ok && value != "" && strings.HasPrefix(name, Prefix) {
			env[strings.TrimPrefix(name, Prefix)] = value
		}
	}
	return env
}
