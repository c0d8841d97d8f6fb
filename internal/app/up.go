package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/consumer"
	"millrace/ingest"
	"millrace/internal/embedded"
	"millrace/internal/kafka"
	"millrace/internal/ops"
	"millrace/internal/settings"
	"millrace/llm/proxy"
	"millrace/llm/sim"
	"millrace/ratelimit"
)

// UpConfig says what to run in one process.
type UpConfig struct {
	Process *Process
	// Embedded says where the services keep their data.
	Embedded embedded.Config
	// Workers is how many workers to run.
	Workers int
	// Rules are classification rules for when the settings name no file.
	Rules []byte
	// Simulator is the provider that answers when the settings name none.
	Simulator sim.Config
	// SimulatorRPM is the limit that workers keep with the simulator. 0: none.
	SimulatorRPM int64
	// Banner gets the addresses once all is up.
	Banner io.Writer
	// WhenUp runs once all is up. When it returns nil, everything goes on; an
	// error, or ErrDone, ends it.
	WhenUp func(ctx context.Context, up *Up) error
}

// ErrDone ends a running Up without an error.
var ErrDone = errors.New("done")

// Up is everything in one process: embedded services, simulator, ingest and
// workers with their relays.
type Up struct {
	// API, Simulator, Postgres and Kafka are where things are. Without a Simulator
	// the settings name providers.
	API       string
	Simulator string
	// Provider says who answers LLM calls.
	Provider string
	Postgres string
	Kafka    []kgo.Opt
	Settings *settings.Settings

	cfg      UpConfig
	listens  string
	services *embedded.Services
	proxy    string
	end      context.CancelFunc
}

// RunUp starts everything, and runs it until ctx ends. When that is before it is
// up, or before WhenUp is done, the error wraps [context.Canceled].
func RunUp(ctx context.Context, cfg UpConfig) error {
	p := cfg.Process
	// The address first: a taken port is told before PostgreSQL has started.
	front, err := listen(ctx, p, "up")
	if err != nil {
		return err
	}
	u := &Up{cfg: cfg, API: "http://" + reachable(front.listener.Addr().String()), Provider: describeLLM(&p.Settings), Settings: &p.Settings, listens: front.listener.Addr().String()}
	parts := []part{{"http", front.serve}}
	if len(p.Settings.LLMProviders) == 0 {
		simulator, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // does not block
		if err != nil {
			_ = front.listener.Close()
			return fmt.Errorf("listen for the simulator: %w", err)
		}
		u.Simulator = "http://" + simulator.Addr().String()
		parts = append(parts, part{"simulator", func(ctx context.Context) error { return u.serveSimulator(ctx, simulator) }})
	}
	running, end := context.WithCancel(ctx)
	defer end()
	u.end = end
	front.unreadyOnceStopped(running)
	err = runParts(running, append(parts, part{"up", func(ctx context.Context) error { return u.run(ctx, front) }})...)
	if ctx.Err() != nil && err != nil && cancelled(err) {
		return interruptedError{}
	}
	return causes(err)
}

// causes leaves out of joined errors what follows from those before: what was
// cut short by them, what is said again, and all that a full disk brings about.
func causes(err error) error {
	if err == nil || cancelled(err) {
		return err
	}
	var kept []error
	full := false
	for _, e := range joined(err) {
		again := func(before error) bool { return strings.Contains(before.Error(), e.Error()) }
		if cancelled(e) || full && embedded.DiskFull(e) || slices.ContainsFunc(kept, again) {
			continue
		}
		full = full || embedded.DiskFull(e)
		kept = append(kept, e)
	}
	return errors.Join(kept...)
}

// joined lists the errors that [errors.Join] has put together.
func joined(err error) []error {
	several, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	parts := several.Unwrap()
	if errors.Join(parts...).Error() != err.Error() {
		return []error{err}
	}
	var all []error
	for _, part := range parts {
		all = append(all, joined(part)...)
	}
	return all
}

// interruptedError is a [context.Canceled] for people.
type interruptedError struct{}

func (interruptedError) Error() string { return "interrupted" }
func (interruptedError) Unwrap() error { return context.Canceled }

// cancelled reports whether err says nothing but that contexts have ended.
func cancelled(err error) bool {
	switch e := err.(type) { //nolint:errorlint // it goes through the tree itself
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			if !cancelled(part) {
				return false
			}
		}
		return true
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return cancelled(inner)
		}
	}
	return errors.Is(err, context.Canceled)
}

// reachable turns an address that stands for all of the machine's into one that
// a client on this machine can call.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// access says who may use the API at the address that it listens on.
func access(auth, addr string) string {
	where := "on " + addr
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		where = "on all addresses of this machine, port " + port
	}
	if auth == "off" {
		return "no authentication, " + where
	}
	return "authentication " + auth + ": whoever reaches the API may use it, " + where
}

// describeLLM says who answers LLM calls, without what may be secret in a
// provider's address.
func describeLLM(s *settings.Settings) string {
	if len(s.LLMProviders) == 0 {
		return "simulated"
	}
	names := make([]string, len(s.LLMProviders))
	for i, p := range s.LLMProviders {
		names[i] = p.Name
		if at, err := url.Parse(p.BaseURL); err == nil {
			names[i] += " at " + at.Host
		}
	}
	who := strings.Join(names, ", ")
	if s.LLMModel != "" {
		who += ", model " + s.LLMModel
	}
	return who
}

func (u *Up) serveSimulator(ctx context.Context, l net.Listener) error {
	s, err := sim.New(u.cfg.Simulator)
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("simulator: %w", err)
	}
	return (&ops.Server{Handler: s.Handler()}).Serve(ctx, l)
}

// run starts the embedded services, then everything that uses them.
func (u *Up) run(ctx context.Context, front *front) (err error) {
	services, err := embedded.Start(ctx, u.cfg.Embedded)
	if err != nil {
		return err
	}
	u.services = services
	defer func() { err = causes(errors.Join(err, services.Close())) }()
	if err := u.configure(ctx); err != nil {
		return err
	}
	parts, release, err := u.parts(ctx, front)
	defer release()
	if err != nil {
		return err
	}
	return runParts(ctx, append([]part{{"embedded services", services.Run}}, parts...)...)
}

// configure points the settings at the embedded services and prepares these.
func (u *Up) configure(ctx context.Context) error {
	s := u.Settings
	s.KafkaBrokers = []string{u.services.Kafka.Addr()}
	s.KafkaTLS, s.KafkaSASLMechanism = false, "none"
	s.RedisMode, s.RedisURL, s.RedisPassword = "single", settings.Secret(u.services.Redis.URL()), ""
	s.PostgresURL, s.PostgresPassword = settings.Secret(u.services.Postgres.URL()), ""
	u.Postgres = u.services.Postgres.URL()
	if len(s.LLMProviders) == 0 {
		s.LLMProviders = []settings.LLMProvider{{
			Name: "simulator", Kind: settings.KindOpenAI, BaseURL: u.Simulator + "/v1", APIKey: "simulated",
		}}
		if s.LLMModel == "" {
			s.LLMModel = "simulator/simulated-model"
		}
		if u.cfg.SimulatorRPM > 0 {
			u.cfg.Process.Limits = ratelimit.Limits{{Account: "simulator", RequestsPerMinute: u.cfg.SimulatorRPM}}
		}
	}
	if _, err := Migrate(ctx, s, u.cfg.Process.Log); err != nil {
		return err
	}
	opts, err := u.cfg.Process.kafkaOptions("up")
	if err != nil {
		return err
	}
	u.Kafka = opts
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("open Kafka client: %w", err)
	}
	defer cl.Close()
	if _, err := kafka.EnsureTopics(ctx, kadm.NewClient(cl), kafka.Topics(s), false); err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	return nil
}

func (u *Up) parts(ctx context.Context, front *front) (parts []part, release func(), err error) {
	var releases []func()
	release = func() {
		for i := len(releases) - 1; i >= 0; i-- {
			releases[i]()
		}
	}
	p := u.cfg.Process
	in, err := u.ingest(ctx, p)
	if err != nil {
		return nil, release, err
	}
	releases = append(releases, in.Close)
	p.Turns = &proxy.Turns{} // one worker's proxy serves the turns of all
	front.mux.Handle("/", in.server.Handler())
	var engines []*consumer.Engine
	for i := range u.cfg.Workers {
		w, err := NewWorker(ctx, u.workerProcess(i), nil)
		if err != nil {
			return nil, release, err
		}
		releases = append(releases, w.Close)
		engines = append(engines, w.engine)
		if w.llm.proxy != nil {
			u.proxy = w.llm.proxy.addr()
		}
		parts = append(parts, part{"worker " + strconv.Itoa(i+1), w.Run})
	}
	front.mux.Handle(explainRoute, explain(engines...))
	parts = append(parts, part{"ingest", in.server.Run})
	parts = append(parts, part{"demo", func(ctx context.Context) error {
		u.banner()
		if u.cfg.WhenUp != nil {
			switch err := u.cfg.WhenUp(ctx, u); {
			case errors.Is(err, ErrDone):
				u.end()
			case err != nil:
				return err
			}
		}
		<-ctx.Done()
		return nil
	}})
	return parts, release, nil
}

func (u *Up) ingest(ctx context.Context, p *Process) (*Ingest, error) {
	if u.Settings.RulesFile != "" || u.cfg.Rules == nil {
		return NewIngest(ctx, p, nil)
	}
	rules, err := ingest.ParseRules("built-in rules", u.cfg.Rules, u.Settings.Priorities)
	if err != nil {
		return nil, err
	}
	return NewIngest(ctx, p, rules)
}

// workerProcess returns the process of the i-th worker. Workers share the
// registry under a label each. Of `up`, only ingest decides on readiness: a
// worker that waits for something must not keep the API from answering.
func (u *Up) workerProcess(i int) *Process {
	p := *u.cfg.Process
	name := strconv.Itoa(i + 1)
	p.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"worker": name}, u.cfg.Process.Registry)
	p.Log = p.Log.With().Str("worker", name).Logger()
	p.Health = ops.NewHealth(0)
	if p.Settings.WorkerName != "" {
		p.Settings.WorkerName += "-" + name // two members of one name fence each other
	}
	if i > 0 {
		p.Settings.LLMProxyAddr = "off"
	}
	return &p
}

func (u *Up) banner() {
	line := func(format string, args ...any) {
		_, _ = fmt.Fprintf(u.cfg.Banner, format+"\n", args...)
	}
	line("Millrace is up: %d workers, handler %s", u.cfg.Workers, u.Settings.Handler)
	line("  API        %s    docs %s/docs    metrics %s/metrics", u.API, u.API, u.API)
	line("  access     %s", access(u.Settings.Auth, u.listens))
	line("  LLM        %s", u.Provider)
	if u.Simulator != "" {
		line("  simulator  %s", u.Simulator)
	}
	if u.proxy != "" {
		line("  LLM proxy  http://%s/v1", u.proxy)
	}
	for _, d := range u.services.Describe() {
		line("  %s", d)
	}
}
