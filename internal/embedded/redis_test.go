package embedded

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func startRedis(t *testing.T, cfg RedisConfig) *Redis {
	t.Helper()
	r, err := StartRedis(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeService(t, r) })
	return r
}

func TestStandInExpiresKeys(t *testing.T) {
	r := startRedis(t, RedisConfig{Dir: openTestDir(t), Program: NoProgram})
	if !r.StandIn() || !strings.Contains(r.Describe(), "keeps nothing") {
		t.Errorf("described as %q", r.Describe())
	}
	opts, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	defer client.Close()
	if err := client.Set(t.Context(), "lease", "mine", 500*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return client.Exists(t.Context(), "lease").Val() == 0 })
}

func TestOldRedisServerIsPassedOver(t *testing.T) {
	bin := t.TempDir()
	program := filepath.Join(bin, "redis-server")
	script := "#!/bin/sh\necho 'Redis server v=5.0.14 sha=00000000:0 malloc=libc bits=64'\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	r := startRedis(t, RedisConfig{Dir: openTestDir(t)})
	if !r.StandIn() || !strings.Contains(r.Describe(), "5.0.14") {
		t.Errorf("described as %q, want the stand-in and why", r.Describe())
	}
	_, err := StartRedis(t.Context(), RedisConfig{Dir: openTestDir(t), Program: program})
	if err == nil || !strings.Contains(err.Error(), "at least 6.2") {
		t.Errorf("named outright: %v, want it refused", err)
	}
}

func TestTakenRedisPortIsNamed(t *testing.T) {
	r := startRedis(t, RedisConfig{Dir: openTestDir(t), Program: NoProgram})
	_, err := StartRedis(t.Context(), RedisConfig{Dir: openTestDir(t), Program: NoProgram, Addr: r.Addr()})
	if err == nil || !strings.Contains(err.Error(), "taken by another program") {
		t.Errorf("got %v, want a plain error", err)
	}
}

func TestAddressesOutsideLoopbackAreRefused(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:9092", ":9092", "192.168.1.2:0", "example.org:1", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"} {
		if _, _, err := splitAddr(addr); err == nil {
			t.Errorf("%q was taken", addr)
		}
	}
	for _, addr := range []string{"", "127.0.0.1:0", "localhost:9092", "[::1]:9092"} {
		if _, _, err := splitAddr(addr); err != nil {
			t.Errorf("%q: %v", addr, err)
		}
	}
}
