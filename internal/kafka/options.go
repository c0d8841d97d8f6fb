package kafka

import (
	"crypto/tls"
	"fmt"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"millrace/internal/settings"
)

// MaxMessageBytes is the largest record batch that clients send and topics
// take: the largest payload, with room for its headers.
const MaxMessageBytes = 2 << 20

// Options returns how every client connects, under the client id "millrace-"
// and part, which log lines of the client carry as well.
func Options(s *settings.Settings, part string, log zerolog.Logger) ([]kgo.Opt, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(s.KafkaBrokers...),
		kgo.ClientID("millrace-" + part),
		kgo.ProducerBatchMaxBytes(MaxMessageBytes),
		kgo.WithLogger(newLogger(log.With().Str("client", part).Logger())),
	}
	if s.KafkaTLS {
		config, err := tlsConfig(s)
		if err != nil {
			return nil, fmt.Errorf("kafka tls: %w", err)
		}
		opts = append(opts, kgo.DialTLSConfig(config))
	}
	mechanism, err := saslMechanism(s)
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

func tlsConfig(s *settings.Settings) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.KafkaTLSCAFile != "" {
		pool, err := settings.CertPool(s.KafkaTLSCAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if s.KafkaTLSCertFile != "" {
		cert, err := tls.LoadX509KeyPair(s.KafkaTLSCertFile, s.KafkaTLSKeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

func saslMechanism(s *settings.Settings) (sasl.Mechanism, error) {
	user, password := s.KafkaUsername, s.KafkaPassword.Reveal()
	switch s.KafkaSASLMechanism {
	case "", "none":
		return nil, nil
	case "PLAIN":
		return plain.Auth{User: user, Pass: password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: user, Pass: password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: user, Pass: password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("kafka sasl mechanism %q is not known", s.KafkaSASLMechanism)
}
