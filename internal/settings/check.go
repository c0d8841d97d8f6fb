package settings

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"millrace"
	"millrace/ingest"
	"millrace/ratelimit"
)

var (
	// topicPrefix: what Kafka allows in topic names; the rest of a name needs room.
	topicPrefix = regexp.MustCompile(`^[A-Za-z0-9._-]{1,150}$`)
	poolName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	workerName  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
)

// maxPriorities keeps lanes and scripts that loop over priorities short.
const maxPriorities = 16

// check reports what is wrong with settings that decode: shapes that tags
// cannot say, and settings that do not go together.
func (l *loader) check(s *Settings) {
	l.checkKafka(s)
	l.checkStores(s)
	l.checkHTTP(s)
	l.checkPriorities(s)
	l.checkWorker(s)
	l.checkRetention(s)
	l.checkContents(s)
}

func (l *loader) checkKafka(s *Settings) {
	for i, broker := range s.KafkaBrokers {
		s.KafkaBrokers[i] = strings.TrimSpace(broker)
		host, port, err := net.SplitHostPort(s.KafkaBrokers[i])
		if err != nil || host == "" || !validPort(port, 1) {
			l.problem("KAFKA_BROKERS", strconv.Quote(MaskURL(broker)), "want host:port, several separated by commas")
		}
	}
	if !s.KafkaTLS {
		for name, file := range map[string]string{
			"KAFKA_TLS_CA_FILE": s.KafkaTLSCAFile, "KAFKA_TLS_CERT_FILE": s.KafkaTLSCertFile, "KAFKA_TLS_KEY_FILE": s.KafkaTLSKeyFile,
		} {
			if file != "" {
				l.problem(name, strconv.Quote(file), "has no effect: set MILLRACE_KAFKA_TLS=on as well")
			}
		}
	}
	if (s.KafkaTLSCertFile == "") != (s.KafkaTLSKeyFile == "") {
		l.problem("KAFKA_TLS_CERT_FILE", strconv.Quote(s.KafkaTLSCertFile), "want it and MILLRACE_KAFKA_TLS_KEY_FILE together, or neither")
	}
	credentials := s.KafkaUsername != "" || s.KafkaPassword != ""
	switch {
	case s.KafkaSASLMechanism == "none" && credentials:
		l.problem("KAFKA_SASL_MECHANISM", `"none"`, "a user or password is set: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
	case s.KafkaSASLMechanism != "none" && s.KafkaSASLMechanism != "":
		if s.KafkaUsername == "" {
			l.problem("KAFKA_USERNAME", "", "missing: MILLRACE_KAFKA_SASL_MECHANISM=%s needs it", s.KafkaSASLMechanism)
		}
		if s.KafkaPassword == "" {
			l.problem("KAFKA_PASSWORD", "", "missing: MILLRACE_KAFKA_SASL_MECHANISM=%s needs it", s.KafkaSASLMechanism)
		}
	}
	if !topicPrefix.MatchString(s.TopicPrefix) {
		l.problem("TOPIC_PREFIX", strconv.Quote(s.TopicPrefix), "want 1 to 150 letters, digits, dots, dashes and underscores")
	}
}

func (l *loader) checkStores(s *Settings) {
	l.checkRedis(s)
	if _, err := s.PostgresConfig(); err != nil {
		l.problem("POSTGRES_URL", s.PostgresURL.String(), "%v", err)
	}
	if hasPassword(s.PostgresURL) && s.PostgresPassword != "" {
		l.problem("POSTGRES_PASSWORD", masked, "MILLRACE_POSTGRES_URL has a password as well; want one of the two")
	}
}

func (l *loader) checkRedis(s *Settings) {
	raw := s.RedisURL.Reveal()
	if _, err := s.RedisAddrs(); err != nil {
		l.problem("REDIS_URL", s.RedisURL.String(), "%v", err)
	} else if !strings.HasPrefix(raw, "rediss://") {
		for name, value := range map[string]string{
			"REDIS_CA_FILE": s.RedisCAFile, "REDIS_CERT_FILE": s.RedisCertFile, "REDIS_KEY_FILE": s.RedisKeyFile, "REDIS_TLS_SERVER_NAME": s.RedisTLSServerName,
		} {
			if value != "" {
				l.problem(name, strconv.Quote(value), "has no effect: want a rediss:// URL in MILLRACE_REDIS_URL")
			}
		}
	}
	if (s.RedisCertFile == "") != (s.RedisKeyFile == "") {
		l.problem("REDIS_CERT_FILE", strconv.Quote(s.RedisCertFile), "want it and MILLRACE_REDIS_KEY_FILE together, or neither")
	}
	// In a URL of sentinels the user and the password are theirs.
	sentinel := s.RedisMode == redisSentinel
	password := hasPassword(s.RedisURL)
	if sentinel {
		u, err := url.Parse(raw)
		password = err == nil && u.Query().Get("password") != ""
	}
	if password && s.RedisPassword != "" {
		l.problem("REDIS_PASSWORD", masked, "MILLRACE_REDIS_URL has a password as well; want one of the two")
	}
	switch {
	case s.RedisSentinelPassword == "":
	case !sentinel:
		l.problem("REDIS_SENTINEL_PASSWORD", masked, "has no effect: set MILLRACE_REDIS_MODE=sentinel as well")
	case hasPassword(s.RedisURL):
		l.problem("REDIS_SENTINEL_PASSWORD", masked, "MILLRACE_REDIS_URL has a password before the host as well, which is the sentinels'; want one of the two")
	}
}

func hasPassword(raw Secret) bool {
	u, err := url.Parse(raw.Reveal())
	if err != nil {
		return false
	}
	_, has := u.User.Password()
	return has
}

func (l *loader) checkHTTP(s *Settings) {
	if s.HTTPAddr != "" {
		host, port, err := net.SplitHostPort(s.HTTPAddr)
		switch {
		case err != nil || !validPort(port, 0):
			l.problem("HTTP_ADDR", strconv.Quote(MaskURL(s.HTTPAddr)), "want host:port, such as 127.0.0.1:8080, or :8080 for all addresses of the machine")
		case l.role.serves() && s.Auth == "off" && !isLoopback(host):
			l.problem("HTTP_ADDR", strconv.Quote(s.HTTPAddr), "with MILLRACE_AUTH=off anybody who reaches this address can send tasks: "+
				"want a loopback address, or MILLRACE_AUTH=trust-network if the network lets in only those who may")
		}
	}
	if !isHTTP(s.URL) {
		l.problem("URL", strconv.Quote(MaskURL(s.URL)), "want an http:// or https:// URL")
	}
	s.URL = strings.TrimRight(s.URL, "/")
}

func (l *loader) checkPriorities(s *Settings) {
	var bad []string
	for i, p := range s.Priorities {
		p = millrace.Priority(strings.TrimSpace(string(p)))
		s.Priorities[i] = p
		if err := p.Validate(); err != nil {
			bad = append(bad, err.Error())
		} else if slices.Contains(s.Priorities[:i], p) {
			bad = append(bad, "priority "+strconv.Quote(string(p))+" is there twice")
		}
	}
	if len(s.Priorities) > maxPriorities {
		bad = append(bad, "more than "+strconv.Itoa(maxPriorities)+" priorities")
	}
	if bad != nil {
		l.problem("PRIORITIES", strconv.Quote(l.env["PRIORITIES"]), "%s", strings.Join(bad, "; "))
		return
	}
	l.checkReserved(s)
}

func (l *loader) checkReserved(s *Settings) {
	if s.Reserved == nil {
		s.Reserved = Reserved{}
		if len(s.Priorities) > 1 && s.Slots >= 10 && l.env["RESERVED"] == "" {
			s.Reserved[s.Priorities[0]] = s.Slots / 10
		}
		return
	}
	value, sum := strconv.Quote(l.env["RESERVED"]), 0
	for p, n := range s.Reserved {
		sum += n
		if !slices.Contains(s.Priorities, p) {
			l.problem("RESERVED", value, "%q is not among MILLRACE_PRIORITIES", string(p))
		}
	}
	if sum > s.Slots && s.Slots > 0 {
		l.problem("RESERVED", value, "reserves %d slots of %d (MILLRACE_SLOTS)", sum, s.Slots)
	}
}

func (l *loader) checkWorker(s *Settings) {
	if !poolName.MatchString(s.Pool) {
		l.problem("POOL", strconv.Quote(s.Pool), "want 1 to 63 lower-case letters, digits and dashes")
	}
	if s.WorkerName != "" && !workerName.MatchString(s.WorkerName) {
		l.problem("WORKER_NAME", strconv.Quote(s.WorkerName), "want at most 128 letters, digits, dots, dashes and underscores")
	}
	if s.RetryMin > s.RetryMax {
		l.problem("RETRY_MIN", strconv.Quote(s.RetryMin.String()), "want at most MILLRACE_RETRY_MAX, which is %s", s.RetryMax)
	}
	if s.HandlerURL != "" && !isHTTP(s.HandlerURL) {
		l.problem("HANDLER_URL", strconv.Quote(MaskURL(s.HandlerURL)), "want an http:// or https:// URL")
	}
	if s.LLMProxyAddr != "off" && s.LLMProxyAddr != "" {
		host, port, err := net.SplitHostPort(s.LLMProxyAddr)
		if err != nil || !validPort(port, 0) || !isLoopback(host) {
			l.problem("LLM_PROXY_ADDR", strconv.Quote(MaskURL(s.LLMProxyAddr)), "want a loopback host:port, such as 127.0.0.1:8090, or off: whoever reaches the proxy calls the LLM with your key")
		}
	}
	if l.role.runs() && s.Handler == "http" && s.HandlerURL == "" {
		l.problem("HANDLER_URL", "", "missing: MILLRACE_HANDLER=http needs the URL to post turns to")
	}
	// up brings a simulated provider along.
	if l.role == RoleWorker && s.Handler == "agent" {
		if len(s.LLMProviders) == 0 {
			l.problem("LLM_<NAME>_BASE_URL", "", "missing: MILLRACE_HANDLER=agent needs a provider, such as MILLRACE_LLM_OPENAI_API_KEY=… or MILLRACE_LLM_LOCAL_BASE_URL=http://…/v1")
		}
		if s.LLMModel == "" {
			l.problem("LLM_MODEL", "", "missing: MILLRACE_HANDLER=agent needs the name of a model")
		}
	}
}

// checkContents judges the files that settings name, so that a broken one is
// known before anything starts.
func (l *loader) checkContents(s *Settings) {
	judge := func(name, path string, load func() error) {
		wrong := func(p Problem) bool { return p.Name == Prefix+name }
		if path == "" || slices.ContainsFunc(l.problems, wrong) {
			return
		}
		if err := load(); err != nil {
			l.problem(name, strconv.Quote(path), "%s", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		}
	}
	priorities := func(p Problem) bool { return p.Name == Prefix+"PRIORITIES" }
	// The rules name priorities: those of all pools. A worker does not classify, and
	// may serve but some of them.
	if !slices.ContainsFunc(l.problems, priorities) && l.role != RoleWorker && l.role != RoleRelay {
		judge("RULES_FILE", s.RulesFile, func() error {
			_, err := ingest.LoadRules(s.RulesFile, s.Priorities)
			return err
		})
	}
	judge("LIMITS_FILE", s.LimitsFile, func() error {
		_, err := ratelimit.LoadLimits(s.LimitsFile)
		return err
	})
}

func validPort(port string, least int) bool {
	n, err := strconv.Atoi(port)
	return err == nil && n >= least && n <= 65535
}

// isLoopback reports whether only this machine can reach host. An empty host is
// every address of the machine.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
