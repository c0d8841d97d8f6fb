package statestore

import (
	"maps"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

func TestFirstFingerprintOfATaskStays(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	testFingerprints(t, client, server.FastForward)
}

func testFingerprints(t *testing.T, client *redis.Client, forward func(time.Duration)) {
	t.Helper()
	s := &Store{cfg: Config{Redis: client}, hot: &hotCopies{prefix: "p:"}}
	claim := func(fingerprints, want map[string]string) {
		t.Helper()
		held, err := s.Claim(t.Context(), fingerprints)
		if err != nil || !maps.Equal(held, want) {
			t.Errorf("claim of %v: %v, %v; want %v", fingerprints, held, err, want)
		}
	}
	claim(map[string]string{"a": "1", "b": "2"}, map[string]string{"a": "1", "b": "2"})
	claim(map[string]string{"a": "1", "b": "3", "c": "4"}, map[string]string{"a": "1", "b": "2", "c": "4"})
	claim(nil, nil)
	if ttl := client.TTL(t.Context(), "p:claim:b").Val(); ttl <= fingerprintTTL-time.Minute || ttl > fingerprintTTL {
		t.Errorf("it stays for %s, want %s", ttl, fingerprintTTL)
	}
	if forward != nil {
		forward(fingerprintTTL)
		claim(map[string]string{"b": "3"}, map[string]string{"b": "3"})
	}
}

func TestFingerprintsOfARedisThatIsOutAreAnError(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	server.Close()
	s := &Store{cfg: Config{Redis: client}, hot: &hotCopies{prefix: "p:"}}
	if held, err := s.Claim(t.Context(), map[string]string{"a": "1"}); err == nil {
		t.Errorf("held %v and no error", held)
	}
}
