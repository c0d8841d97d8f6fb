package testenv

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// claimKey marks a logical database, in database 0, as taken by a test. A claim outlives a test that dies, but not for long.
const (
	claimKey = "testenv:claim:"
	claimTTL = 20 * time.Minute
)

// Redis returns the URL of an empty logical database on the shared server that no other test has, in this test binary or any other.
// It is emptied when the test ends.
func Redis(t testing.TB) (url string) {
	t.Helper()
	url = os.Getenv("MILLRACE_TEST_REDIS_URL")
	if url == "" {
		url = shared.redis.url(t)
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		t.Fatalf("MILLRACE_TEST_REDIS_URL: %v", err)
	}
	options.DB = 0
	claims := redis.NewClient(options)
	number, err := claimDatabase(t.Context(), claims, t.Name())
	if err != nil {
		_ = claims.Close()
		t.Fatalf("claim a Redis database on %s: %v", options.Addr, err)
	}
	databaseOptions := *options
	databaseOptions.DB = number
	database := redis.NewClient(&databaseOptions)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startTimeout)
		defer cancel()
		defer func() { _ = database.Close(); _ = claims.Close() }()
		if err := database.FlushDB(ctx).Err(); err != nil {
			t.Errorf("empty Redis database %d: %v", number, err)
		}
		if err := claims.Del(ctx, claimKey+strconv.Itoa(number)).Err(); err != nil {
			t.Errorf("give back Redis database %d: %v", number, err)
		}
	})
	if err := database.FlushDB(t.Context()).Err(); err != nil {
		t.Fatalf("empty Redis database %d: %v", number, err)
	}
	return redisURL(options, number)
}

// claimDatabase takes the next free logical database, beginning where the last claim ended.
func claimDatabase(ctx context.Context, claims *redis.Client, owner string) (int, error) {
	config, err := claims.ConfigGet(ctx, "databases").Result()
	if err != nil {
		return 0, err
	}
	databases, err := strconv.Atoi(config["databases"])
	if err != nil {
		return 0, fmt.Errorf("number of databases: %w", err)
	}
	for range databases - 1 {
		next, err := claims.Incr(ctx, "testenv:next").Result()
		if err != nil {
			return 0, err
		}
		number := 1 + int(next-1)%(databases-1)
		err = claims.SetArgs(ctx, claimKey+strconv.Itoa(number), owner, redis.SetArgs{Mode: "NX", TTL: claimTTL}).Err()
		if err == nil {
			return number, nil
		}
		if err != redis.Nil { //nolint:errorlint // a plain value by contract
			return 0, err
		}
	}
	return 0, fmt.Errorf("all %d databases are in use by other tests", databases-1)
}

// redisURL is the URL of a database with the credentials and the encryption of the server's.
func redisURL(options *redis.Options, database int) string {
	scheme, user := "redis", ""
	if options.TLSConfig != nil {
		scheme = "rediss"
	}
	if options.Username != "" || options.Password != "" {
		user = options.Username + ":" + options.Password + "@"
	}
	return fmt.Sprintf("%s://%s%s/%d", scheme, user, options.Addr, database)
}

// StartRedis starts a server for this test alone. The arguments follow those that keep nothing on disk: "--appendonly", "yes" makes
// it keep its data over Stop and Start.
func StartRedis(t testing.TB, args ...string) *Server {
	t.Helper()
	return dedicated(t, redisSpec(args...))
}

func redisSpec(args ...string) spec {
	return spec{
		image: redisImage,
		port:  "6379",
		args:  append([]string{"redis-server", "--save", "", "--databases", "512"}, args...),
		configure: func(s *spec, server *Server) {
			if s.onHost {
				s.args = slices.Insert(slices.Clone(s.args), 1, "--port", s.port, "--bind", "127.0.0.1")
			}
			server.URL = "redis://" + server.Address + "/0"
		},
		ping: func(ctx context.Context, server *Server) error {
			client := redis.NewClient(&redis.Options{Addr: server.Address, MaxRetries: -1})
			defer func() { _ = client.Close() }()
			return client.Ping(ctx).Err()
		},
	}
}
