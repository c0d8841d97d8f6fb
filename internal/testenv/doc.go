// Package testenv gives tests a real Apache Kafka, Redis and PostgreSQL, started as containers through testcontainers-go.
//
// One container of each kind serves a whole test binary, started by the first test that asks. Each test is isolated within it:
// [Kafka] goes with [TopicPrefix], [Redis] hands out a logical database, [Postgres] a fresh database. What a test does to a whole
// server (stopping it, FLUSHALL, CONFIG SET) belongs on a container of its own: [StartKafka], [StartRedis], [StartPostgres].
//
// A test binary that uses the package ends in [Main]:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// These variables say what runs:
//
//	MILLRACE_TEST_KAFKA_BROKERS   servers that run already, used instead of containers; scripts/with-services sets the
//	MILLRACE_TEST_REDIS_URL       three so that several test binaries share one set
//	MILLRACE_TEST_POSTGRES_URL
//	MILLRACE_TEST_KAFKA_IMAGE     images; by default those that scripts/test-deps has built (millrace-test/…) if the
//	MILLRACE_TEST_REDIS_IMAGE     engine has them, else the official ones
//	MILLRACE_TEST_POSTGRES_IMAGE
//
// A service that cannot be had fails the test; nothing is skipped. The engine must run on this machine, since the servers are bound
// to ports of 127.0.0.1. The Ryuk image of testcontainers is not needed: containers that a killed test binary left behind are
// removed by the next one (set TESTCONTAINERS_RYUK_DISABLED=false to have Ryuk as well).
package testenv
