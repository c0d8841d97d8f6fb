package settings

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"

	"github.com/redis/go-redis/v9"
)

// How Redis runs, see MILLRACE_REDIS_MODE.
const (
	redisSingle   = "single"
	redisCluster  = "cluster"
	redisSentinel = "sentinel"
)

// redisForms are the URLs of each mode.
//
//nolint:gosec // no credentials, but where they go
var redisForms = map[string]string{
	redisSingle:   "redis://user:password@host:6379/0 or rediss://…",
	redisCluster:  "redis://user:password@host:6379?addr=host2:6379&addr=host3:6379 or rediss://…",
	redisSentinel: "redis://host:26379/0?master_name=mymaster&addr=host2:26379&addr=host3:26379&username=user or rediss://…",
}

// RedisClient returns a client of the Redis that the settings describe: one
// server, a cluster, or the master that sentinels name. It may have minPool
// connections open at once to each server, unless the URL allows for more. A call
// ends when its context does, and not only before it is sent: a Redis that stands
// still must not hold up whoever has said how long he can wait. It does not connect.
func (s *Settings) RedisClient(minPool int) (redis.UniversalClient, error) {
	switch s.RedisMode {
	case redisCluster:
		opts, err := s.clusterOptions()
		if err != nil {
			return nil, err
		}
		opts.PoolSize, opts.ContextTimeoutEnabled = max(opts.PoolSize, minPool), true
		return redis.NewClusterClient(opts), nil
	case redisSentinel:
		opts, err := s.failoverOptions()
		if err != nil {
			return nil, err
		}
		opts.PoolSize, opts.ContextTimeoutEnabled = max(opts.PoolSize, minPool), true
		return redis.NewFailoverClient(opts), nil
	}
	opts, err := s.singleOptions()
	if err != nil {
		return nil, err
	}
	opts.PoolSize, opts.ContextTimeoutEnabled = max(opts.PoolSize, minPool), true
	return redis.NewClient(opts), nil
}

// RedisAddrs returns the addresses that the URL names: servers, or sentinels. One
// that begins with a slash is a socket.
func (s *Settings) RedisAddrs() ([]string, error) {
	switch s.RedisMode {
	case redisCluster:
		opts, err := s.clusterOptions()
		if err != nil {
			return nil, err
		}
		return opts.Addrs, nil
	case redisSentinel:
		opts, err := s.failoverOptions()
		if err != nil {
			return nil, err
		}
		return opts.SentinelAddrs, nil
	}
	opts, err := s.singleOptions()
	if err != nil {
		return nil, err
	}
	return []string{opts.Addr}, nil
}

func (s *Settings) singleOptions() (*redis.Options, error) {
	opts, err := redis.ParseURL(s.RedisURL.Reveal())
	if err != nil {
		return nil, s.wrongRedisURL(err)
	}
	if s.RedisPassword != "" {
		opts.Password = s.RedisPassword.Reveal()
	}
	return opts, s.secureRedis(opts.TLSConfig)
}

func (s *Settings) clusterOptions() (*redis.ClusterOptions, error) {
	opts, err := redis.ParseClusterURL(s.RedisURL.Reveal())
	if err != nil {
		return nil, s.wrongRedisURL(err)
	}
	// The library overlooks the path.
	if u, err := url.Parse(s.RedisURL.Reveal()); err != nil || u.Path != "" && u.Path != "/" && u.Path != "/0" {
		return nil, s.wrongRedisURL(errors.New("a cluster has only database 0"))
	}
	if opts.ReadOnly || opts.RouteByLatency || opts.RouteRandomly {
		return nil, s.wrongRedisURL(errReplicas)
	}
	if s.RedisPassword != "" {
		opts.Password = s.RedisPassword.Reveal()
	}
	return opts, s.secureRedis(opts.TLSConfig)
}

func (s *Settings) failoverOptions() (*redis.FailoverOptions, error) {
	opts, err := redis.ParseFailoverURL(s.RedisURL.Reveal())
	if err != nil {
		return nil, s.wrongRedisURL(err)
	}
	if opts.MasterName == "" {
		return nil, s.wrongRedisURL(errors.New("master_name is missing, the name that the sentinels know the master by"))
	}
	if opts.ReplicaOnly || opts.RouteByLatency || opts.RouteRandomly {
		return nil, s.wrongRedisURL(errReplicas)
	}
	if s.RedisPassword != "" {
		opts.Password = s.RedisPassword.Reveal()
	}
	if s.RedisSentinelPassword != "" {
		opts.SentinelPassword = s.RedisSentinelPassword.Reveal()
	}
	return opts, s.secureRedis(opts.TLSConfig)
}

// errReplicas: replicas lag behind, and what they have not heard of yet (who runs
// a turn, who has a lease) would be taken for not being there.
var errReplicas = errors.New("reads must not go to replicas: leave out read_only, replica_only, route_by_latency and route_randomly")

func (s *Settings) wrongRedisURL(err error) error {
	form, known := redisForms[s.RedisMode]
	if !known {
		form = redisForms[redisSingle]
	}
	return fmt.Errorf("want %s: %s", form, withoutPassword(err, s.RedisURL))
}

// secureRedis completes what a rediss:// URL says of TLS.
func (s *Settings) secureRedis(config *tls.Config) error {
	if config == nil {
		return nil
	}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	if s.RedisMode == redisCluster || s.RedisMode == redisSentinel {
		// The parser puts the first address here, for all servers. Empty is each one's
		// own.
		config.ServerName = ""
	}
	if s.RedisTLSServerName != "" {
		config.ServerName = s.RedisTLSServerName
	}
	if s.RedisCAFile != "" {
		pool, err := CertPool(s.RedisCAFile)
		if err != nil {
			return err
		}
		config.RootCAs = pool
	}
	if s.RedisCertFile != "" && s.RedisKeyFile != "" {
		pair, err := tls.LoadX509KeyPair(s.RedisCertFile, s.RedisKeyFile)
		if err != nil {
			return fmt.Errorf("MILLRACE_REDIS_CERT_FILE and MILLRACE_REDIS_KEY_FILE: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return nil
}
