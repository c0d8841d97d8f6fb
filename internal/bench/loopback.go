package bench

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"millrace/internal/settings"
)

// checkLoopback reports services that are not on this machine: load is never
// sent anywhere else.
func checkLoopback(s *settings.Settings) error {
	for _, broker := range s.KafkaBrokers {
		host, _, err := net.SplitHostPort(broker)
		if err != nil {
			return fmt.Errorf("kafka broker %q: %w", broker, err)
		}
		if !loopback(host) {
			return notLoopback("Kafka", host)
		}
	}
	redis, err := s.RedisAddrs()
	if err != nil {
		return fmt.Errorf("MILLRACE_REDIS_URL: %w", err)
	}
	for _, addr := range redis {
		if host, _, err := net.SplitHostPort(addr); !strings.HasPrefix(addr, "/") && (err != nil || !loopback(host)) {
			return notLoopback("Redis", addr)
		}
	}
	postgres, err := s.PostgresConfig()
	if err != nil {
		return fmt.Errorf("MILLRACE_POSTGRES_URL: %w", err)
	}
	hosts := []string{postgres.ConnConfig.Host}
	for _, other := range postgres.ConnConfig.Fallbacks {
		hosts = append(hosts, other.Host)
	}
	for _, host := range hosts {
		if !strings.HasPrefix(host, "/") && !loopback(host) {
			return notLoopback("PostgreSQL", host)
		}
	}
	return nil
}

// checkBrokers reports brokers that are elsewhere, whatever address leads to
// them.
func checkBrokers(ctx context.Context, adm *kadm.Client) error {
	brokers, err := adm.ListBrokers(ctx)
	if err != nil {
		return fmt.Errorf("list brokers: %w", err)
	}
	for _, b := range brokers {
		if !loopback(b.Host) {
			return notLoopback("Kafka", b.Host)
		}
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func notLoopback(what, host string) error {
	return fmt.Errorf("%s is at %s: benchmarks send load to loopback addresses only, 127.0.0.0/8, ::1 or localhost", what, host)
}
