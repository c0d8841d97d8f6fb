package app

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"millrace/internal/kafka"
	"millrace/internal/settings"
)

// otherPools reports whether there are topics of priorities that this worker does
// not serve: then other pools do, and share its conversations.
func otherPools(ctx context.Context, s *settings.Settings, opts []kgo.Opt, log zerolog.Logger) (bool, error) {
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return false, fmt.Errorf("open Kafka client: %w", err)
	}
	defer cl.Close()
	others, err := kafka.OtherTaskTopics(ctx, kadm.NewClient(cl), s)
	if err != nil || len(others) == 0 {
		return false, err
	}
	log.Info().Str("pool", s.Pool).Strs("others", others).
		Msg("this pool does not serve all priorities (MILLRACE_PRIORITIES): every turn takes a lease, for those of other pools may be of the same conversation")
	return true, nil
}

// advertised returns this machine's name and the address that other machines
// reach a listener by: its own, or, when it listens on all of the machine's, the
// one that this machine talks to Redis from.
func advertised(ctx context.Context, p *Process, listens string) (host, addr string) {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	ip, port, err := net.SplitHostPort(listens)
	if err != nil {
		return host, ""
	}
	if parsed := net.ParseIP(ip); parsed == nil || !parsed.IsUnspecified() {
		return host, listens
	}
	own := host
	if addrs, err := p.Settings.RedisAddrs(); err == nil {
		dialer := net.Dialer{Timeout: time.Second}
		// A datagram socket is given its address without a packet being sent.
		if conn, err := dialer.DialContext(ctx, "udp", addrs[0]); err == nil {
			if local, ok := conn.LocalAddr().(*net.UDPAddr); ok {
				own = local.IP.String()
			}
			_ = conn.Close()
		}
	}
	return host, net.JoinHostPort(own, port)
}
