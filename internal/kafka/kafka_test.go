package kafka

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"millrace/internal/settings"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cluster(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func load(t *testing.T, c *kfake.Cluster, environ ...string) *settings.Settings {
	t.Helper()
	s, err := settings.Load(append(environ, "MILLRACE_KAFKA_BROKERS="+strings.Join(c.ListenAddrs(), ",")), settings.RoleTool)
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

func client(t *testing.T, s *settings.Settings, more ...kgo.Opt) *kgo.Client {
	t.Helper()
	opts, err := Options(s, "test", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(opts, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func TestTopicsAreCreatedOnce(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(3)), "MILLRACE_PARTITIONS=6")
	adm := kadm.NewClient(client(t, s))
	topics := Topics(s)

	planned, err := EnsureTopics(t.Context(), adm, topics, true)
	if err != nil || len(planned) != 6 {
		t.Fatalf("dry run: %v, %v", planned, err)
	}
	if err := CheckTopics(t.Context(), adm, topics); err == nil || strings.Count(err.Error(), "is missing") != 6 {
		t.Fatalf("after a dry run, want 6 missing topics, got %v", err)
	}

	changes, err := EnsureTopics(t.Context(), adm, topics, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if c.What == "" {
			t.Errorf("%s was not created", c.Topic)
		}
	}
	if err := CheckTopics(t.Context(), adm, topics); err != nil {
		t.Errorf("check: %v", err)
	}
	again, err := EnsureTopics(t.Context(), adm, topics, false)
	if err != nil || len(again) != 6 {
		t.Fatalf("again: %v, %v", again, err)
	}
	for _, c := range again {
		if c.What != "" {
			t.Errorf("%s was created twice: %s", c.Topic, c.What)
		}
	}

	details, err := adm.ListTopics(kadm.WithAuthorizedOps(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{
		"millrace.tasks.high": 6, "millrace.tasks.normal": 6, "millrace.tasks.batch": 6,
		"millrace.results": 6, "millrace.dlq": 6, "millrace.relay.markers": 8,
	}
	for name, partitions := range want {
		detail := details[name]
		if len(detail.Partitions) != partitions || detail.Partitions.NumReplicas() != 3 {
			t.Errorf("%s: %d partitions with %d replicas, want %d with 3", name, len(detail.Partitions), detail.Partitions.NumReplicas(), partitions)
		}
	}
	configs, err := adm.DescribeTopicConfigs(t.Context(), "millrace.tasks.high", "millrace.relay.markers")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]map[string]string{
		"millrace.tasks.high":    {"min.insync.replicas": "2", "max.message.bytes": "2097152", "cleanup.policy": "delete"},
		"millrace.relay.markers": {"min.insync.replicas": "2", "cleanup.policy": "compact"},
	} {
		resource, err := configs.On(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]string)
		for _, c := range resource.Configs {
			got[c.Key] = c.MaybeValue()
		}
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s=%s, want %s", name, key, got[key], value)
			}
		}
	}
}

func TestOneBrokerGetsOneReplica(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(1)), "MILLRACE_PARTITIONS=2")
	adm := kadm.NewClient(client(t, s))
	if _, err := EnsureTopics(t.Context(), adm, Topics(s), false); err != nil {
		t.Fatal(err)
	}
	details, err := adm.ListTopics(kadm.WithAuthorizedOps(t.Context()), "millrace.tasks.high")
	if err != nil || details["millrace.tasks.high"].Partitions.NumReplicas() != 1 {
		t.Errorf("got %v, %v", details, err)
	}
}

func TestWrongTopicsAreRefusedAndNothingIsCreated(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(1)), "MILLRACE_PARTITIONS=6")
	adm := kadm.NewClient(client(t, s))
	for name, config := range map[string]map[string]*string{
		"millrace.tasks.high":    nil,
		"millrace.tasks.normal":  {"cleanup.policy": kadm.StringPtr("compact"), "max.message.bytes": kadm.StringPtr("1000000")},
		"millrace.relay.markers": {"max.message.bytes": kadm.StringPtr("2097152")},
	} {
		if _, err := adm.CreateTopic(t.Context(), 4, 1, config, name); err != nil {
			t.Fatal(err)
		}
	}
	_, err := EnsureTopics(t.Context(), adm, Topics(s), false)
	if err == nil {
		t.Fatal("want an error")
	}
	for _, want := range []string{
		"topic millrace.tasks.high has 4 partitions, MILLRACE_PARTITIONS is 6: set MILLRACE_PARTITIONS=4",
		"topic millrace.tasks.normal has 4 partitions",
		"topic millrace.tasks.normal has cleanup.policy=compact",
		"topic millrace.tasks.normal has max.message.bytes=1000000",
		"topic millrace.relay.markers has 4 partitions, want 8",
		"topic millrace.relay.markers has cleanup.policy=delete",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("want %q in:\n%v", want, err)
		}
	}
	details, listErr := adm.ListTopics(kadm.WithAuthorizedOps(t.Context()))
	if listErr != nil || len(details) != 3 {
		t.Errorf("want the 3 topics there were, got %v, %v", details.Names(), listErr)
	}
	if checkErr := CheckTopics(t.Context(), adm, Topics(s)); checkErr == nil || strings.Count(checkErr.Error(), "missing") != 3 {
		t.Errorf("check: %v", checkErr)
	}
}

func TestClientsLogInOverTLS(t *testing.T) {
	folder := t.TempDir()
	server, ca := certificate(t, folder)
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			c := cluster(t, kfake.NumBrokers(1), kfake.TLS(server), kfake.EnableSASL(), kfake.Superuser(mechanism, "millrace", "hunter2"))
			environ := []string{
				"MILLRACE_KAFKA_TLS=on", "MILLRACE_KAFKA_TLS_CA_FILE=" + ca,
				"MILLRACE_KAFKA_SASL_MECHANISM=" + mechanism, "MILLRACE_KAFKA_USERNAME=millrace",
			}
			if err := client(t, load(t, c, append(environ, "MILLRACE_KAFKA_PASSWORD=hunter2")...)).Ping(t.Context()); err != nil {
				t.Errorf("right password: %v", err)
			}
			wrong := client(t, load(t, c, append(environ, "MILLRACE_KAFKA_PASSWORD=wrong")...))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := wrong.Ping(ctx); err == nil {
				t.Error("wrong password: want an error")
			}
		})
	}
}

func TestUnusableTLSFilesAreErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []settings.Settings{
		{KafkaTLS: true, KafkaTLSCAFile: path},
		{KafkaTLS: true, KafkaTLSCertFile: path, KafkaTLSKeyFile: path},
		{KafkaTLS: true, KafkaTLSCAFile: path + ".missing"},
	} {
		if _, err := Options(&s, "test", zerolog.Nop()); err == nil {
			t.Errorf("%+v: want an error", s)
		}
	}
}

func TestLargestPayloadFitsTopicAndClient(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(1)), "MILLRACE_PARTITIONS=1")
	cl := client(t, s, kgo.ProducerBatchCompression(kgo.NoCompression()))
	if _, err := EnsureTopics(t.Context(), kadm.NewClient(cl), Topics(s), false); err != nil {
		t.Fatal(err)
	}
	record := &kgo.Record{Topic: s.TaskTopic("high"), Value: make([]byte, 2031616), Headers: []kgo.RecordHeader{{Key: "ce_x", Value: make([]byte, 40_000)}}}
	if err := cl.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Error(err)
	}
}

func TestLagCountsFromCommitOrOldestRecord(t *testing.T) {
	s := load(t, cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(2, "tasks")))
	cl := client(t, s, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	adm := kadm.NewClient(cl)
	for range 5 {
		for partition := range int32(2) {
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "tasks", Partition: partition}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	g, err := Lag(t.Context(), adm, "millrace.default", "tasks")
	if err != nil {
		t.Fatal(err)
	}
	if total, known := g.Total("tasks"); total != 10 || !known || g.State != "none" || *g.Members != 0 {
		t.Errorf("before any commit: lag %d (known %t), state %s", total, known, g.State)
	}

	offsets := kadm.Offsets{}
	offsets.AddOffset("tasks", 0, 3, -1)
	if err := adm.CommitAllOffsets(t.Context(), "millrace.default", offsets); err != nil {
		t.Fatal(err)
	}
	g, err = Lag(t.Context(), adm, "millrace.default", "tasks")
	if err != nil {
		t.Fatal(err)
	}
	if first, second := g.Partitions[0], g.Partitions[1]; *first.Committed != 3 || *first.Lag != 2 || second.Committed != nil || *second.Lag != 5 {
		t.Errorf("got %+v", g.Partitions)
	}
}

func TestLagOfLiveGroupKnowsItsMembers(t *testing.T) {
	for name, protocol := range map[string]kgo.Opt{"classic": kgo.Balancers(kgo.CooperativeStickyBalancer()), "KIP-848": kgo.ServerSideBalancer()} {
		t.Run(name, func(t *testing.T) {
			s := load(t, cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "tasks")))
			assigned := make(chan struct{}, 1)
			member := client(t, s, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("tasks"), protocol,
				kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) {
					select {
					case assigned <- struct{}{}:
					default:
					}
				}))
			<-assigned
			if err := member.ProduceSync(t.Context(), &kgo.Record{Topic: "tasks"}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			g, err := Lag(t.Context(), kadm.NewClient(member), "g", "tasks")
			if err != nil {
				t.Fatal(err)
			}
			if total, known := g.Total(""); total != 1 || !known || g.Members == nil || *g.Members != 1 {
				t.Errorf("got %+v", g)
			}
		})
	}
}

func TestUnansweredPartOfLagIsUnknown(t *testing.T) {
	tests := map[string]struct {
		key  kmsg.Key
		fail func(kmsg.Request) kmsg.Response
	}{
		"commits": {kmsg.OffsetFetch, func(r kmsg.Request) kmsg.Response {
			response := r.ResponseKind().(*kmsg.OffsetFetchResponse)
			for _, asked := range r.(*kmsg.OffsetFetchRequest).Groups {
				group := kmsg.NewOffsetFetchResponseGroup()
				group.Group, group.ErrorCode = asked.Group, kerr.GroupAuthorizationFailed.Code
				response.Groups = append(response.Groups, group)
			}
			response.ErrorCode = kerr.GroupAuthorizationFailed.Code
			return response
		}},
		"ends": {kmsg.ListOffsets, func(r kmsg.Request) kmsg.Response {
			response := r.ResponseKind().(*kmsg.ListOffsetsResponse)
			for _, asked := range r.(*kmsg.ListOffsetsRequest).Topics {
				topic := kmsg.NewListOffsetsResponseTopic()
				topic.Topic = asked.Topic
				for _, p := range asked.Partitions {
					partition := kmsg.NewListOffsetsResponseTopicPartition()
					partition.Partition, partition.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
					topic.Partitions = append(topic.Partitions, partition)
				}
				response.Topics = append(response.Topics, topic)
			}
			return response
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "tasks"))
			cl := client(t, load(t, c))
			if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "tasks"}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			c.ControlKey(test.key.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.KeepControl()
				return test.fail(r), nil, true
			})
			g, err := Lag(t.Context(), kadm.NewClient(cl), "g", "tasks")
			if err != nil {
				t.Fatal(err)
			}
			if _, known := g.Total(""); known || len(g.Partitions) != 1 || g.Partitions[0].Lag != nil || g.Partitions[0].Error == "" {
				t.Errorf("want an unknown lag with its reason, got %+v", g)
			}
		})
	}
}

func TestMissingTopicHasUnknownLag(t *testing.T) {
	cl := client(t, load(t, cluster(t, kfake.NumBrokers(1))))
	g, err := Lag(t.Context(), kadm.NewClient(cl), "g", "nowhere")
	if err != nil {
		t.Fatal(err)
	}
	if _, known := g.Total(""); known || g.Partitions[0].Error == "" {
		t.Errorf("got %+v", g)
	}
}

func TestClientWarningsReachTheLogOncePerWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newLogger(zerolog.New(&out).Level(zerolog.InfoLevel))
		if l.Level() != kgo.LogLevelWarn {
			t.Errorf("level %v, want warnings", l.Level())
		}
		l.Log(kgo.LogLevelInfo, "hidden")
		for range 3 {
			l.Log(kgo.LogLevelWarn, "down", "broker", 1, "err", errors.New("gone"))
		}
		l.Log(kgo.LogLevelError, "other")
		<-time.After(repeatAfter)
		l.Log(kgo.LogLevelWarn, "down", "broker", 2)
		want := `{"level":"warn","broker":1,"err":"gone","message":"kafka: down"}
{"level":"error","message":"kafka: other"}
{"level":"warn","broker":2,"repeated":2,"message":"kafka: down"}
`
		if got := out.String(); got != want {
			t.Errorf("got:\n%s", got)
		}
	})
}

func TestUnreachableKafkaIsNamed(t *testing.T) {
	s, err := settings.Load([]string{"MILLRACE_KAFKA_BROKERS=127.0.0.1:1"}, settings.RoleTool)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Dial(ctx, &s, "test", zerolog.Nop())
	if err == nil || !strings.HasPrefix(err.Error(), "kafka at 127.0.0.1:1 (MILLRACE_KAFKA_BROKERS): ") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
}

func TestClientsOfOnePartShareTheirCounts(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	s := load(t, cluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "tasks")))
	for range 2 {
		cl := client(t, s, metrics.Client("relay"), kgo.ConsumeTopics("tasks"), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "tasks", Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.PollFetches(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		cl.Close()
	}
	unreachable := client(t, &settings.Settings{KafkaBrokers: []string{"127.0.0.1:1"}}, metrics.Client("ingest"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := unreachable.Ping(ctx); err == nil {
		t.Fatal("want an error")
	}
	if got := testutil.ToFloat64(metrics.produced.WithLabelValues("relay", "tasks")); got != 2 {
		t.Errorf("%v records produced, want 2", got)
	}
	if got := testutil.ToFloat64(metrics.fetched.WithLabelValues("relay", "tasks")); got < 2 {
		t.Errorf("%v records fetched, want 2 at least", got)
	}
	if testutil.ToFloat64(metrics.connects.WithLabelValues("relay", "connected")) == 0 || testutil.ToFloat64(metrics.connects.WithLabelValues("ingest", "failed")) == 0 {
		t.Error("connects are not counted")
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if _, err := NewMetrics(registry); err == nil {
		t.Error("a second registration: want an error")
	}
}

// certificate returns the TLS configuration of a server on loopback and the
// path of the file with the authority that signed for it: itself.
func certificate(t *testing.T, folder string) (server *tls.Config, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(folder, "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, caFile
}
