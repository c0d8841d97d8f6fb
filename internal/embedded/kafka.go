package embedded

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
)

// KafkaConfig says how to run the embedded broker.
type KafkaConfig struct {
	// Dir is the data directory; its folder "kafka" is the broker's.
	Dir *Dir
	// Addr is a loopback address. Empty or port 0: the port used last with this
	// data directory if it is free, else any.
	Addr string
	// Sync makes every write durable before it is acknowledged, at the cost of one
	// fsync per batch. Without it what is acknowledged survives the end of this
	// process, however it ends, but not the end of the machine.
	Sync bool
	// MaxMessageBytes bounds a batch for topics that set no bound of their own. 0
	// means 2 MiB and some room for headers.
	MaxMessageBytes int
	// Logger gets the broker's own lines.
	Logger zerolog.Logger
}

// Kafka is an embedded broker that speaks Kafka's protocol: a single node, with
// transactions, both group protocols and a log on disk. Topics are made by
// request only, never by being named.
//
// It differs from a real broker where its own coordinator is concerned: commit
// markers of a transaction are written partition by partition with no
// transaction log, so a process killed in the middle of ending a transaction can
// leave it committed in some partitions and aborted in others; and a fenced
// producer that asks for a new epoch under its old producer id gets one. What
// was in flight when the process was killed is aborted on the next start.
type Kafka struct {
	cfg     KafkaConfig
	cluster *kfake.Cluster
	addr    string
	log     *kafkaLog

	stop    chan struct{}
	stopped sync.WaitGroup
	once    sync.Once

	closeErr error
}

const kafkaName = "kafka"

// retainEvery is how often retention is applied. The broker's own ticker does
// not start again after a reload.
const retainEvery = 5 * time.Minute

// StartKafka starts the broker.
func StartKafka(cfg KafkaConfig) (*Kafka, error) {
	if cfg.Dir == nil {
		return nil, errors.New("kafka: no data directory")
	}
	if cfg.MaxMessageBytes < 0 {
		return nil, fmt.Errorf("kafka: max message bytes %d: want 0 or more", cfg.MaxMessageBytes)
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 2<<20 + 64<<10
	}
	dir, err := cfg.Dir.sub(kafkaName, nil)
	if err != nil {
		return nil, err
	}
	ln, err := listen(kafkaName, cfg.Addr, cfg.Dir.port(kafkaName))
	if err != nil {
		return nil, err
	}
	log := &kafkaLog{logger: cfg.Logger.With().Str("service", kafkaName).Logger(), failed: make(chan struct{})}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID("millrace"),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
		kfake.DataDir(dir),
		kfake.WithLogger(log),
		kfake.BrokerConfigs(map[string]string{
			"default.replication.factor": "1",
			"message.max.bytes":          strconv.Itoa(cfg.MaxMessageBytes),
			// The default of a week would forget the position of a data directory that
			// was put aside for longer.
			"offsets.retention.minutes": strconv.Itoa(10 * 365 * 24 * 60),
		}),
	}
	if cfg.Sync {
		opts = append(opts, kfake.SyncWrites())
	}
	cluster, err := startCluster(cfg, dir, ln, opts)
	if err != nil {
		return nil, fmt.Errorf("kafka: start on %s: %w", dir, errors.Join(err, ignoreClosed(ln.Close())))
	}
	k := &Kafka{cfg: cfg, cluster: cluster, addr: ln.Addr().String(), log: log, stop: make(chan struct{})}
	// Compaction rewrites a partition in place, which a kill would cut short, so it
	// is done now, while nobody writes, and left to the broker's hourly round after.
	cluster.Compact()
	k.stopped.Add(1)
	go k.retain()
	return k, nil
}

// startCluster starts the broker and mends what a kill has left.
func startCluster(cfg KafkaConfig, dir string, ln net.Listener, opts []kfake.Opt) (*kfake.Cluster, error) {
	var open []openTransaction
	if !cfg.Dir.kafkaClosed() {
		var err error
		if open, err = openTransactions(dir); err != nil {
			return nil, err
		}
	}
	port := 0
	if tcp, ok := ln.Addr().(*net.TCPAddr); ok {
		port = tcp.Port
	}
	if err := cfg.Dir.kafkaStarts(port); err != nil {
		return nil, err
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return nil, err
	}
	if err := abortOpen(ln.Addr().String(), open); err != nil {
		cluster.Close()
		return nil, fmt.Errorf("abort transactions that were open at the last end: %w", err)
	}
	return cluster, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (k *Kafka) retain() {
	defer k.stopped.Done()
	ticker := time.NewTicker(retainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-ticker.C:
			k.cluster.ApplyRetention()
		}
	}
}

// Name returns "kafka".
func (k *Kafka) Name() string { return kafkaName }

// Addr returns the broker's address, host:port.
func (k *Kafka) Addr() string { return k.addr }

// Describe says in a line what runs and what of it lasts.
func (k *Kafka) Describe() string {
	s := "Kafka protocol broker (franz-go kfake) on " + k.addr
	switch {
	case k.cfg.Dir.Temporary():
		return s + ", log in a temporary directory"
	case k.cfg.Sync:
		return s + ", log in " + filepath.Join(k.cfg.Dir.Path(), kafkaName) + ", synced; transactions open at a crash are aborted"
	}
	return s + ", log in " + filepath.Join(k.cfg.Dir.Path(), kafkaName) + ", not synced: it outlives this process, not a power failure"
}

// Done is closed when the broker can no longer keep what it acknowledges.
func (k *Kafka) Done() <-chan struct{} { return k.log.failed }

// Err says why Done was closed.
func (k *Kafka) Err() error { return k.log.err() }

// Close stops the broker and writes its state out; it returns the error when
// that did not succeed. Clients must have been closed.
func (k *Kafka) Close() error {
	k.once.Do(func() {
		close(k.stop)
		k.stopped.Wait()
		k.cluster.Close()
		if k.closeErr = k.log.err(); k.closeErr == nil {
			k.closeErr = k.cfg.Dir.kafkaStopped()
		}
	})
	return k.closeErr
}
