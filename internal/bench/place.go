package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/app"
	"millrace/internal/kafka"
	"millrace/internal/settings"
)

// partitions of every topic, as the figures of others were measured.
const partitions = 12

// removeTimeout bounds cleaning up, which outlives an interrupt.
const removeTimeout = 30 * time.Second

// place is where a run of benchmarks keeps its topics and its database.
type place struct {
	settings settings.Settings
	log      zerolog.Logger
	progress io.Writer
	client   *kgo.Client
	admin    *kadm.Client
	prefix   string
	kept     string // the prefix of topics that stay
	database string
	server   string // URL of the database that was there before
	groups   []string
}

// newPlace connects to the services and makes a database with the schema.
func newPlace(ctx context.Context, s settings.Settings, kept string, progress io.Writer, log zerolog.Logger) (*place, error) {
	p := &place{
		settings: s, log: log, progress: progress, kept: kept,
		prefix: unique("millrace-bench-") + ".", server: s.PostgresURL.Reveal(),
	}
	var err error
	if p.client, err = kafka.Dial(ctx, &s, "bench", log); err != nil {
		return nil, err
	}
	p.admin = kadm.NewClient(p.client)
	if err := checkBrokers(ctx, p.admin); err != nil {
		p.client.Close()
		return nil, err
	}
	if err := p.createDatabase(ctx); err != nil {
		return nil, errors.Join(err, p.remove(ctx))
	}
	return p, nil
}

func unique(prefix string) string {
	return fmt.Sprintf("%s%08x", prefix, rand.Uint32()) //nolint:gosec // no secret
}

func (p *place) createDatabase(ctx context.Context) error {
	location, err := url.Parse(p.server)
	if err != nil {
		return errors.New("MILLRACE_POSTGRES_URL: not a URL")
	}
	name := strings.ReplaceAll(strings.TrimSuffix(p.prefix, "."), "-", "_")
	if err := p.onServer(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create the benchmark's database: %w", err)
	}
	p.database = name
	location.Path = "/" + name
	p.settings.PostgresURL = settings.Secret(location.String())
	if _, err := app.Migrate(ctx, &p.settings, p.log); err != nil {
		return fmt.Errorf("migrate the benchmark's database: %w", err)
	}
	return nil
}

func (p *place) onServer(ctx context.Context, statement string) error {
	before := p.settings
	before.PostgresURL = settings.Secret(p.server)
	cfg, err := before.PostgresConfig()
	if err != nil {
		return fmt.Errorf("MILLRACE_POSTGRES_URL: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

// remove deletes what the run has made, but for kept topics.
func (p *place) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	var errs []error
	for _, group := range p.groups {
		if _, err := p.admin.DeleteGroup(ctx, group); err != nil {
			p.log.Debug().Err(err).Str("group", group).Msg("cannot delete consumer group")
		}
	}
	errs = append(errs, p.deleteTopics(ctx))
	p.client.Close()
	if p.database != "" {
		if err := p.onServer(ctx, "DROP DATABASE "+pgx.Identifier{p.database}.Sanitize()+" WITH (FORCE)"); err != nil {
			errs = append(errs, fmt.Errorf("drop database %s: %w", p.database, err))
		}
	}
	return errors.Join(errs...)
}

func (p *place) deleteTopics(ctx context.Context) error {
	all, err := p.admin.ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list the benchmark's topics: %w", err)
	}
	var mine []string
	for _, topic := range all.Names() {
		if strings.HasPrefix(topic, p.prefix) {
			mine = append(mine, topic)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	deleted, err := p.admin.DeleteTopics(ctx, mine...)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		return fmt.Errorf("delete the benchmark's topics: %w", err)
	}
	return nil
}

// shared names the topics whose records several benchmarks read.
const shared = "records"

// topics makes an installation's topics under a name and returns the settings
// of a worker of that installation, in a group that has read nothing yet. The pool
// is the same whenever a topic is read: two would share conversations, and pay
// for it.
func (p *place) topics(ctx context.Context, name string) (settings.Settings, error) {
	prefix := p.prefix + name + "."
	if name == shared && p.kept != "" {
		prefix = p.kept
	}
	s := p.settings
	s.TopicPrefix, s.Partitions = prefix, partitions
	s.Pool, s.WorkerName = "bench", ""
	s.Results = false
	// What is left in Redis is to be gone soon.
	s.RedisTTL = time.Minute
	s.LLMProviders = nil
	if _, err := kafka.EnsureTopics(ctx, p.admin, kafka.Topics(&s), false); err != nil {
		return s, err
	}
	if !slices.Contains(p.groups, s.Group()) {
		p.groups = append(p.groups, s.Group())
	}
	// A broker that has had no group yet has nobody to ask for a deletion.
	groups, err := p.admin.ListGroups(ctx)
	if err != nil {
		return s, fmt.Errorf("list groups: %w", err)
	}
	if _, known := groups[s.Group()]; known {
		if _, err := p.admin.DeleteGroup(ctx, s.Group()); err != nil {
			return s, fmt.Errorf("forget what group %s has read: %w", s.Group(), err)
		}
	}
	return s, nil
}
