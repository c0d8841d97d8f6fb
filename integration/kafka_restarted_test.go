//go:build integration

package integration

import (
	"testing"
	"time"

	"millrace/internal/testenv"
)

// Kafka goes away under load for a few seconds. The API refuses tasks meanwhile,
// clients send them again, and afterwards all goes on by itself.
func TestKafkaRestarted(t *testing.T) {
	server := testenv.StartKafka(t, nil)
	p := newPipeline(t, services{kafka: server.URL}, append(slowEcho(t), "MILLRACE_SLOTS=8")...)
	p.restartUnderLoad(server, 3*time.Second)
}
