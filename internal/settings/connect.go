package settings

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// postgresPatience bounds how long a connection to PostgreSQL may take, and how
// long one that was idle may take to answer. Left to itself, the pool waits two
// minutes for a host that is gone without a word before it asks the next one in
// the URL, and a minute for a connection to such a host, while both keep others
// from connecting.
const postgresPatience = 5 * time.Second

// PostgresConfig returns how to connect to PostgreSQL. Its errors do not show
// the password.
func (s *Settings) PostgresConfig() (*pgxpool.Config, error) {
	raw := s.PostgresURL.Reveal()
	// Not by net/url, which refuses several hosts with an IPv6 address among them.
	if scheme, _, _ := strings.Cut(raw, "://"); scheme != "postgres" && scheme != "postgresql" {
		return nil, errors.New("want postgres://user:password@host:5432/database?sslmode=…")
	}
	config, err := pgxpool.ParseConfig(raw)
	if err != nil {
		// The library quotes the whole URL in front of the cause.
		if cause := errors.Unwrap(err); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("want postgres://user:password@host:5432/database?sslmode=…: %s", withoutPassword(err, s.PostgresURL))
	}
	if s.PostgresPassword != "" {
		config.ConnConfig.Password = s.PostgresPassword.Reveal()
	}
	config.MaxConns = int32(s.PostgresMaxConns) //nolint:gosec // at most 1000
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, postgresPatience)
	config.PingTimeout = cmp.Or(config.PingTimeout, postgresPatience)
	return config, nil
}

// withoutPassword returns what err says, unless that would show the password.
func withoutPassword(err error, raw Secret) string {
	text := err.Error()
	u, parseErr := url.Parse(raw.Reveal())
	if parseErr != nil {
		return "not a URL"
	}
	password, _ := u.User.Password()
	passwords := []string{password}
	for name, values := range u.Query() {
		if isPassword(name) {
			passwords = append(passwords, values...)
		}
	}
	for _, password := range append(passwords, raw.Reveal()) {
		for _, shown := range []string{password, url.QueryEscape(password), url.PathEscape(password)} {
			if shown != "" && strings.Contains(text, shown) {
				return "not valid"
			}
		}
	}
	return text
}

// CertPool returns the certificates in a PEM file.
func CertPool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificates: %s holds none in PEM form", path)
	}
	return pool, nil
}
