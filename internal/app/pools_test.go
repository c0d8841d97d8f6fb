package app

import (
	"net"
	"testing"

	"millrace/internal/settings"
)

func TestAProcessOnAllAddressesTellsOneThatOthersReach(t *testing.T) {
	p := &Process{Settings: settings.Settings{RedisURL: "redis://127.0.0.1:6379/0"}}
	for listens, want := range map[string]string{
		"127.0.0.1:8081": "127.0.0.1:8081",
		"10.1.2.3:8081":  "10.1.2.3:8081",
		"0.0.0.0:8081":   "127.0.0.1:8081", // the way to this Redis
		"[::]:8081":      "127.0.0.1:8081",
	} {
		host, addr := advertised(t.Context(), p, listens)
		if addr != want || host == "" {
			t.Errorf("%s: got %s on %q, want %s", listens, addr, host, want)
		}
	}
	p.Settings.RedisURL = "none"
	host, addr := advertised(t.Context(), p, "[::]:8081")
	if want := net.JoinHostPort(host, "8081"); addr != want {
		t.Errorf("without a way to Redis: got %s, want %s", addr, want)
	}
}
