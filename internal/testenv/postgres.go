package testenv

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Postgres returns the URL of a fresh database on the shared server, owned by the user in the URL, who may create others. The database
// is dropped when the test ends, whoever is still connected.
func Postgres(t testing.TB) (databaseURL string) {
	t.Helper()
	server := os.Getenv("MILLRACE_TEST_POSTGRES_URL")
	if server == "" {
		server = shared.postgres.url(t)
	}
	parsed, err := url.Parse(server)
	if err != nil {
		t.Fatalf("MILLRACE_TEST_POSTGRES_URL: %v", err)
	}
	name := uniqueName(t, "_", 60)
	if err := execute(t.Context(), server, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		t.Fatalf("create database %s: %v", name, err)
	}
	t.Cleanup(func() {
		drop := "DROP DATABASE " + pgx.Identifier{name}.Sanitize() + " WITH (FORCE)"
		if err := execute(context.WithoutCancel(t.Context()), server, drop); err != nil {
			t.Errorf("drop database %s: %v", name, err)
		}
	})
	parsed.Path = "/" + name
	return parsed.String()
}

func execute(ctx context.Context, server, statement string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	connection, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close(ctx) }()
	_, err = connection.Exec(ctx, statement)
	return err
}

// StartPostgres starts a server for this test alone, with further arguments such as "-c", "fsync=on".
func StartPostgres(t testing.TB, args ...string) *Server {
	t.Helper()
	return dedicated(t, postgresSpec(args...))
}

// postgresSpec is a server without fsync: the kernel outlives every test, so a killed server still finds what it wrote.
func postgresSpec(args ...string) spec {
	return spec{
		image: postgresImage,
		port:  "5432",
		env:   map[string]string{"POSTGRES_USER": "millrace", "POSTGRES_PASSWORD": "millrace", "POSTGRES_DB": "millrace"},
		args:  append([]string{"postgres", "-c", "fsync=off", "-c", "max_connections=300"}, args...),
		configure: func(s *spec, server *Server) {
			if s.onHost {
				s.args = slices.Insert(slices.Clone(s.args), 1, "-p", s.port, "-c", "listen_addresses=127.0.0.1")
			}
			server.URL = fmt.Sprintf("postgres://millrace:millrace@%s/millrace?sslmode=disable", server.Address)
		},
		ping: func(ctx context.Context, server *Server) error { return execute(ctx, server.URL, "SELECT 1") },
	}
}
