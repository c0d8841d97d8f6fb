package app

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"millrace/internal/settings"
)

func TestProcessIsReadyFromItsStartUntilItIsToldToStop(t *testing.T) {
	p, err := NewProcess(settings.Settings{HTTPAddr: "127.0.0.1:0"}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	f, err := listen(t.Context(), p, "worker")
	if err != nil {
		t.Fatal(err)
	}
	// What the checks say is repeated for a second: here they are asked afresh.
	ready := func() error {
		p.Health.Ready("afresh", func(context.Context) error { return nil })
		w := httptest.NewRecorder()
		f.mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", http.NoBody))
		if w.Code == http.StatusOK {
			return nil
		}
		return errors.New(strings.TrimSpace(w.Body.String()))
	}
	ctx, stop := context.WithCancel(t.Context())
	drained := false
	err = f.whileStarting(ctx, func(context.Context) (part, func(), error) {
		if err := ready(); err == nil || err.Error() != "start: "+errStarting.Error() {
			t.Errorf("while starting: %v", err)
		}
		return part{"worker", func(ctx context.Context) error {
			if err := ready(); err != nil {
				t.Errorf("running: %v", err)
			}
			stop()
			<-ctx.Done()
			if err := ready(); err == nil || err.Error() != "process: "+errStopping.Error() {
				t.Errorf("while draining: %v", err)
			}
			drained = true
			return nil
		}}, func() {}, nil
	})
	if err != nil && !errors.Is(err, context.Canceled) || !drained {
		t.Errorf("%v, drained %v", err, drained)
	}
}
