// Package integration holds scenarios: real millrace processes on a real Kafka,
// Redis and PostgreSQL, and what must come out when something goes wrong. Each
// file is one of them.
//
//	scripts/with-services go test -race -tags integration ./integration/...
//
// A scenario starts a pipeline (topics, a database and a Redis of its own, and
// millrace processes on them), puts a load on it, breaks something, and has the
// verdict found from the results topic and PostgreSQL alone: nothing lost, twice,
// or out of order. With -race the processes run with the race detector as well.
package integration
