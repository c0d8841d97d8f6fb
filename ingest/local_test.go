package ingest_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"millrace/ingest"
)

func TestLocalServerRefusesWhatForeignPagesSend(t *testing.T) {
	local := start(t, func(c *ingest.Config) { c.LocalOnly = true })
	open := start(t, nil)
	for name, test := range map[string]struct{ host, origin, problem string }{
		"address":                 {"127.0.0.1:8080", "", ""},
		"address without port":    {"127.0.0.1", "", ""},
		"IPv6":                    {"[::1]:8080", "", ""},
		"IPv6 without port":       {"[::1]", "", ""},
		"name":                    {"LocalHost:8080", "", ""},
		"name below it":           {"millrace.localhost:8080", "", ""},
		"own page":                {"localhost:8080", "http://localhost:8080", ""},
		"foreign name":            {"evil.com", "", "foreign-host"},
		"foreign name, own page":  {"evil.com:8080", "http://evil.com:8080", "foreign-host"},
		"name that begins alike":  {"localhost.evil.com", "", "foreign-host"},
		"address that ends alike": {"127.0.0.1.evil.com", "", "foreign-host"},
		"address of the network":  {"192.168.0.1:8080", "", "foreign-host"},
		"foreign page":            {"127.0.0.1:8080", "https://evil.com", "foreign-origin"},
		"page of another port":    {"127.0.0.1:8080", "http://127.0.0.1:3000", "foreign-origin"},
		"page of a file":          {"127.0.0.1:8080", "null", "foreign-origin"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/docs", "/v1/dead-letters", "/v1/nowhere", "/v1/tasks"} {
				send := func(f *fixture) *response {
					method, body := http.MethodGet, ""
					if path == "/v1/tasks" {
						method, body = http.MethodPost, `{"conversation":"c","type":"t","payload":1}`
					}
					r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
					r.Host = test.host
					r.Header.Set("Content-Type", "application/json")
					if test.origin != "" {
						r.Header.Set("Origin", test.origin)
					}
					w := httptest.NewRecorder()
					f.server.Handler().ServeHTTP(w, r)
					return &response{status: w.Code, header: w.Header(), body: w.Body.Bytes()}
				}
				got := send(local)
				if test.problem == "" {
					if got.status == http.StatusForbidden {
						t.Errorf("%s: %s", path, got.body)
					}
					continue
				}
				if p := got.problem(t); got.status != http.StatusForbidden || p.Type != ingest.ProblemPrefix+test.problem {
					t.Errorf("%s: status %d, problem %+v", path, got.status, p)
				}
				if got := send(open); got.status == http.StatusForbidden {
					t.Errorf("%s on a server for others: %s", path, got.body)
				}
			}
		})
	}
}
