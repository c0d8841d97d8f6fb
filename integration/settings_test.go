//go:build integration

package integration

import (
	"net"
	"net/http"
	"strings"
	"testing"
)

// All that is wrong is told at once, before anything starts.
func TestSettingsAreCheckedTogether(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"worker", "ingest", "relay", "up"} {
		t.Run(role, func(t *testing.T) {
			p := launch(t, role, []string{"MILLRACE_SLOTS=x", "MILLRACE_HTTP_ADDR=y", "MILLRACE_HANDLER=z"}, role)
			if code := p.wait(startPatience); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			said := string(p.output())
			for _, want := range []string{`MILLRACE_SLOTS="x"`, `MILLRACE_HTTP_ADDR="y"`, `MILLRACE_HANDLER="z"`} {
				if !strings.Contains(said, want) {
					t.Errorf("%s is not named in:\n%s", want, said)
				}
			}
		})
	}
}

// What cannot be reached is named with its address, and what waits for it says
// so, is alive and not ready, and stops when told.
func TestUnreachableServicesAreNamed(t *testing.T) {
	t.Parallel()
	nowhere := unusedAddress(t)
	env := []string{
		"MILLRACE_KAFKA_BROKERS=" + nowhere,
		"MILLRACE_REDIS_URL=redis://" + nowhere,
		"MILLRACE_POSTGRES_URL=postgres://millrace:secret-word@" + nowhere + "/millrace",
		"MILLRACE_URL=http://" + nowhere,
		"MILLRACE_HTTP_ADDR=" + unusedAddress(t),
		"MILLRACE_LLM_PROXY_ADDR=off",
	}
	for _, args := range [][]string{{"topics"}, {"lag"}, {"tail"}, {"submit", "--payload", "{}"}} {
		t.Run(args[0], func(t *testing.T) {
			t.Parallel()
			p := launch(t, args[0], env, args...)
			if code := p.wait(startPatience); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if said := string(p.output()); !strings.Contains(said, nowhere) {
				t.Errorf("%s is not named in:\n%s", nowhere, said)
			}
		})
	}
	for role, service := range map[string]string{"ingest": "Kafka", "worker": "PostgreSQL", "relay": "PostgreSQL"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			addr := unusedAddress(t)
			p := launch(t, role, append(env, "MILLRACE_HTTP_ADDR="+addr), role)
			line := string(p.says(`(?m)^\{.*"message":"waiting for `+service+`"\}$`, startPatience)[0])
			if port := nowhere[strings.LastIndex(nowhere, ":")+1:]; !strings.Contains(line, port) || strings.Contains(line, "secret-word") {
				t.Errorf("%s is not named, or the password is, in:\n%s", nowhere, line)
			}
			if err := get("http://"+addr+"/livez", http.StatusOK, nil); err != nil {
				t.Error(err)
			}
			if err := get("http://"+addr+"/readyz", http.StatusServiceUnavailable, nil); err != nil {
				t.Error(err)
			}
			p.terminate()
		})
	}
}

// unusedAddress returns an address that nobody listens on.
func unusedAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
