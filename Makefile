# Everything that is done to this project has a name here; "make" lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The tools are pinned in a go.mod of their own.
TOOL := go tool -modfile=tools/go.mod
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# The version comes from here alone: go's own stamp fails in a clone that belongs to somebody else.
LDFLAGS := -X main.version=$(VERSION)

# The race detector needs a C compiler.
RACE := $(if $(shell command -v "$${CC:-cc}" || command -v gcc),-race)

# The packages that have integration tests.
INTEGRATION = $(shell git ls-files --cached --others --exclude-standard -- '*_test.go' | \
	xargs grep -lE '^//go:build .*\bintegration\b' 2>/dev/null | xargs -r -n1 dirname | sort -u | grep -v '^bench' | sed 's,^,./,')

##@ Use

.PHONY: run
run: build ## Start everything on this machine, with embedded services and a demonstration (ARGS="--exit": and stop after it)
	@exec bin/millrace up --demo $(ARGS)

.PHONY: build
build: check-go ## Build bin/millrace
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/millrace ./cmd/millrace

.PHONY: module-path
module-path: check-go ## Give the module the path that it is published under (MODULE=example.com/team/millrace)
	@[[ -n "$(MODULE)" ]] || { echo 'say which: make module-path MODULE=example.com/team/millrace' >&2; exit 2; }
	go -C tools run ./modulepath .. '$(MODULE)'
	go build ./... && go vet -tags integration ./...

##@ Test

.PHONY: test
test: test-services test-unit test-integration ## Run all tests; needs Docker for those against real services

.PHONY: test-unit
test-unit: check-go ## Run the tests that need no service
	@[[ -n "$(RACE)" ]] || echo 'note: no C compiler, so the race detector is off'
	$(TOOL) gotestsum --format pkgname-and-test-fails -- $(RACE) -timeout 10m ./...
	go -C tools test ./...

.PHONY: test-integration
test-integration: test-services ## Run the tests against real Kafka, Redis and PostgreSQL (RUN=TestName: only those)
	@[[ -n "$(RACE)" ]] || echo 'note: no C compiler, so the race detector is off'
	scripts/with-services $(TOOL) gotestsum --format testname -- $(RACE) -tags integration -timeout 40m -count=1 $(if $(RUN),-run '$(RUN)') $(INTEGRATION)
	$(if $(RUN),,scripts/with-services go -C bench test -tags integration -timeout 10m -count=1 ./...)

# What talks to PostgreSQL in every way that there is, but for tests that watch its sessions.
.PHONY: test-pgbouncer
test-pgbouncer: test-services ## Run tests of the store through PgBouncer, which shares connections out by transaction
	scripts/with-services scripts/with-pgbouncer $(TOOL) gotestsum --format testname -- -tags integration -timeout 5m -count=1 \
		-run '^(TestPooler|TestCommit[A-GI-Z]|TestAHandler|TestATransactionThat|TestTwoRuns|TestTransactionsOfTurns|TestStep|TestJournal|TestDeadLetter|TestRedrive|TestCoalesce|TestCancel|TestMigrat)' \
		./statestore ./internal/app

# On a CI machine what is missing is installed; elsewhere the check says how.
.PHONY: test-services
test-services: check-go
	@if [[ "$${CI:-}" == true ]]; then scripts/test-deps; fi
	@scripts/with-services -check

.PHONY: test-deps
test-deps: ## Make this machine ready for the integration tests (Debian, as root)
	scripts/test-deps

.PHONY: bench
bench: check-go ## Run the benchmarks of all packages (RUN=BenchmarkName: only those)
	go test -run '^$$' -bench '$(or $(RUN),.)' -benchmem ./...

# ARGS are further flags of bench/, such as -json.
.PHONY: bench-peers
bench-peers: build ## Run side by side with peers, on the same records (ONLY=engine|outbox|commit RECORDS=2000000 RUNS=3)
	go -C bench build -o ../bin/bench-peers .
	$(foreach s,KAFKA_BROKERS REDIS_URL POSTGRES_URL,$(if $(MILLRACE_$s),MILLRACE_TEST_$s="$$MILLRACE_$s")) MILLRACE_TEST_KAFKA_JVM=-XX:+UseG1GC scripts/with-services \
		bin/bench-peers -only '$(or $(ONLY),engine)' $(if $(RECORDS),-records '$(RECORDS)') $(if $(RUNS),-runs '$(RUNS)') $(ARGS)

.PHONY: fuzz
fuzz: check-go ## Run each fuzz target for FUZZTIME, 10s by default (RUN=FuzzName: only those)
	FUZZTIME='$(FUZZTIME)' RUN='$(RUN)' tools/fuzz.sh

##@ Keep in order

.PHONY: lint
lint: check-go ## Run the linters, with the table of imports among them
	$(TOOL) golangci-lint run ./...

.PHONY: fmt
fmt: check-go ## Format all Go files
	$(TOOL) golangci-lint fmt ./...

.PHONY: generate
generate: check-go ## Make generated files anew, the README's table of settings among them
	go generate ./...
	go run ./cmd/millrace config --markdown --into README.md

.PHONY: verify
verify: check-go ## Fail if dependencies, format or generated files are not as they should be
	tools/verify.sh

.PHONY: vuln
vuln: check-go ## Look for known vulnerabilities in what is used (asks vuln.go.dev)
	$(TOOL) govulncheck ./...

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin

.PHONY: check-go
check-go:
	@tools/check-go.sh

.PHONY: help
help:
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
