package testenv

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// standbyScript copies the primary on the first start and follows it.
const standbyScript = `set -e
[ -s "$PGDATA/PG_VERSION" ] || pg_basebackup --pgdata "$PGDATA" --write-recovery-conf --checkpoint fast \
	--dbname "host=$PRIMARY_HOST port=$PRIMARY_PORT user=millrace application_name=standby"
exec postgres -D "$PGDATA" -c listen_addresses='*' "$@"`

// StartPostgresStandby starts a server that follows one from [StartPostgres] and takes reads alone until it is promoted
// ("SELECT pg_promote()"). From here on the primary acknowledges nothing that the standby does not have.
func StartPostgresStandby(t testing.TB, primary *Server) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	host, port, err := primary.beside(ctx, "5432")
	if err != nil {
		t.Fatalf("address of the primary: %v", err)
	}
	for _, statement := range []string{
		`COPY (SELECT 'host replication all all scram-sha-256') TO PROGRAM 'cat >>"$PGDATA/pg_hba.conf"'`,
		`SELECT pg_reload_conf()`,
	} {
		if err := execute(ctx, primary.URL, statement); err != nil {
			t.Fatalf("let a standby in: %v", err)
		}
	}
	s := postgresSpec()
	s.user = "postgres"
	s.env = map[string]string{"PGPASSWORD": "millrace", "PRIMARY_HOST": host, "PRIMARY_PORT": port}
	configure := s.configure
	s.configure = func(s *spec, server *Server) {
		configure(s, server)
		s.args = append([]string{"sh", "-c", standbyScript}, s.args...) // of which the first, "postgres", becomes the script's name
	}
	standby := dedicated(t, s)
	for _, statement := range []string{`ALTER SYSTEM SET synchronous_standby_names = 'standby'`, `SELECT pg_reload_conf()`} {
		if err := execute(ctx, primary.URL, statement); err != nil {
			t.Fatalf("make the primary wait for its standby: %v", err)
		}
	}
	if err := awaitSynchronous(ctx, primary); err != nil {
		t.Fatalf("the primary does not wait for its standby: %v", err)
	}
	return standby
}

// beside returns where another container reaches the server, which listens on a port inside its own.
func (s *Server) beside(ctx context.Context, port string) (host, onPort string, err error) {
	if hostNetwork() {
		return net.SplitHostPort(s.Address)
	}
	host, err = s.container.ContainerIP(ctx)
	return host, port, err
}

func awaitSynchronous(ctx context.Context, primary *Server) error {
	connection, err := pgx.Connect(ctx, primary.URL)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close(ctx) }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var synchronous bool
		err := connection.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')`).Scan(&synchronous)
		if err != nil {
			return fmt.Errorf("ask for the state of replication: %w", err)
		}
		if synchronous {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
