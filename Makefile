# The commands of the README. Each installs what it lacks, or says what to install, then builds and runs.

.PHONY: help demo up test test-pingora check checks deny bench bench-selection bench-instructions full flaky properties simulate mutants fuzz test-compose tools-demo tools-test python

# Command to look for, and the package of Debian 12 and 13 that brings it. PostgreSQL's lies in a folder of its version.
DEMO_TOOLS := cc:build-essential cmake:cmake
TEST_TOOLS := $(DEMO_TOOLS) curl:curl ip:iproute2 openssl:openssl nginx:nginx-light haproxy:haproxy redis-server:redis-server promtool:prometheus \
	chromium:chromium chromedriver:chromium-driver python3:python3-venv \
	$(firstword $(wildcard /usr/lib/postgresql/*/bin/initdb) /usr/lib/postgresql/bin/initdb):postgresql go:golang-go
# Redis 8 beside Debian 12's 7.0, with the libraries that it needs.
REDIS_8 := redis-server redis-tools libatomic1 libc6 libcap2 libgcc-s1 libjemalloc2 liblzf1 libssl3t64 libstdc++6 \
	libsystemd0 libzstd1 zlib1g

PYTHON := target/python/bin/python3

# End-to-end tests mostly wait, so that four at a time suit even two cores.
TEST_THREADS := 4

## This list
help:
	@awk '/^## / { text = substr($$0, 4) } \
		/^[a-z-]+:/ && text { sub(":.*", ""); printf "  make %-19s %s\n", $$0, text; text = "" }' $(firstword $(MAKEFILE_LIST))

## One balancer and three app instances on this machine, until Ctrl-C
demo: tools-demo
	cargo build --package evenkeel --package app --no-default-features --bins
	exec target/debug/app demo $(DEMO)

## The whole stack in containers (compose/README.md). COMPOSE=docker-compose for version 1.29
COMPOSE ?= docker compose
up:
	compose/secrets.sh
	cd compose && DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 $(COMPOSE) up --build -d
	@cd compose && printf '\nThe site      http://%s\nGrafana       http://%s\nPrometheus    http://%s\n\n' \
		"$$($(COMPOSE) port evenkeel 8888)" "$$($(COMPOSE) port grafana 3000)" "$$($(COMPOSE) port prometheus 9090)"
	@printf '%s\n' "All is up once '$(COMPOSE) ps', in compose/, calls everything healthy." \
		"To look inside, CrateDB's Admin UI on 4200 and Redis on 7001 to 7006, in compose/:" \
		"  $(COMPOSE) -f docker-compose.yml -f compose.inspect.yml up -d inspect" \
		"Not there by default: on 4200 everybody is CrateDB's superuser, without a password."

## All tests and checks but those of the compose stack; CI runs this, then test-compose
test: tools-test python check deny checks
	cargo build --workspace --bins --tests
	# The same cases each time, so that a change fails by what it changes; make properties tries fresh ones.
	PROPTEST_RNG_SEED=1 cargo test --workspace --no-fail-fast -- --test-threads $(TEST_THREADS) --show-output
	$(MAKE) test-pingora

# What Pingora's proxy does otherwise (docs/pingora.md): it passes a head on before any content has come, it takes the whole
# shutdown_timeout to stop, and each attempt may use an idle connection of its own.
NOT_IN_PINGORA := nothing_of_an_abandoned_response_reaches_the_client the_cookie_outlives_restarts_and_reloads \
	a_request_that_fails_its_backends_at_once_meets_one_stale_connection_at_most

## Algorithms, swaps, health, retries and sticky cookies with Evenkeel in a Pingora server; part of make test
test-pingora: tools-demo
	cargo build --workspace --bins --tests
	EVENKEEL_IN=pingora-proxy cargo test --workspace --test balancer -- --test-threads $(TEST_THREADS) \
		algorithms:: hot_swap:: health:: retry:: sticky:: pingora:: reload::half_close_changes reload::max_body_bytes_changes $(NOT_IN_PINGORA:%=--skip %)

## Format and lints
check: tools-demo
	cargo fmt --all --check
	# rustfmt leaves comments as they are.
	@LC_ALL=C.UTF-8 grep -rnE --include='*.rs' --exclude-dir=target '^.{121,}$$' lb app tests | grep -E '^[^:]+:[0-9]+: *//' \
		&& echo 'warning: wrap these comments at 120 columns' || true
	# With the feature pingora-proxy, which the example asks for.
	cargo clippy --workspace --all-targets -- --deny warnings
	RUSTDOCFLAGS='--deny warnings' cargo doc --workspace --lib --no-deps --document-private-items --quiet
	# As README builds it: alone, without the features that other packages ask of its dependencies.
	cargo check --package evenkeel
	# As `make demo` builds it.
	cargo check --package app --no-default-features

## SQL, compose files, dashboards and alerts; part of make test
# SQL against CrateDB's grammar, its scripts on a stand-in; compose files against both specifications; alerts by promtool.
checks: tools-test python
	$(PYTHON) sql/check.py
	$(PYTHON) sql/test.py
	$(PYTHON) compose/check.py
	$(PYTHON) grafana/check.py

## Licences, sources and bans of all dependencies
deny:
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --locked --all-features check bans licenses sources; \
	else \
		echo "NOT RUN: cargo deny (install it with: cargo install --locked cargo-deny)"; \
	fi

## Beside nginx, HAProxy, Envoy and Pingora's proxy; writes docs/performance.md
bench: tools-demo
	sh tests/bench/run

## What one choice of a backend costs
bench-selection: tools-demo
	cargo bench --package evenkeel --bench pick

## Instructions for each request, compared with those on record
bench-instructions: tools-demo
	sh tests/bench/instructions --check

## properties, simulate, fuzz, mutants, and mutants of what has changed since SINCE (main), each with its time: hours
full:
	@for part in properties simulate fuzz 'mutants SINCE=' 'mutants SINCE=$(or $(SINCE),main)'; do \
		start=$$(date +%s); \
		$(MAKE) $$part || exit 1; \
		echo "$$part took $$(($$(date +%s) - start)) seconds"; \
	done

## The tests ROUNDS times beside a busy loop on each core, to find flaky ones; TESTS="--test balancer retry::" for some
ROUNDS ?= 10
flaky: tools-test python
	cargo build --workspace --bins --tests
	.ci/flaky $(ROUNDS) $(TESTS) -- --test-threads $(TEST_THREADS)

## Properties of values, messages and frames with fresh cases, RUNS times
RUNS ?= 20
properties: tools-demo
	for run in $$(seq $(RUNS)); do \
		cargo test --package evenkeel --lib --test values --test http1 --test http2 --quiet -- --skip simulation:: || exit 1; \
	done

## A million schedules of the engine, or SCHEDULES=…, and the planted bugs; SEED=… one schedule with its trace
SCHEDULES ?= 1000000
SIMULATE = cargo test --workspace --lib --config 'profile.dev.package.evenkeel.opt-level=2' -- --nocapture
simulate: tools-demo
ifdef SEED
	EVENKEEL_SEED=$(SEED) $(SIMULATE) --exact simulation::as_many_schedules_as_wanted_hold
else
	EVENKEEL_SCHEDULES=$(SCHEDULES) $(SIMULATE) simulation::
endif

## Mutants of the pure modules that no unit test kills; SINCE=main of what has changed since
MUTANTS ?= balance balance/* exchange/headers failure health/* site/hosts site/routes sticky
# Only unit tests are built and run.
MUTATE = cargo mutants --package evenkeel --cargo-arg=--lib --output target
mutants: tools-demo
	@cargo mutants --version >/dev/null 2>&1 || { echo "cargo-mutants is missing: cargo install --locked cargo-mutants"; exit 1; }
ifneq ($(SINCE),)
	mkdir -p target
	git diff --merge-base $(SINCE) >target/since.diff
	$(MUTATE) --in-diff target/since.diff
else
	@# cargo-mutants passes over a file that is not there.
	@ls $(patsubst %,lb/src/%.rs,$(MUTANTS)) >/dev/null
	$(MUTATE) $(patsubst %,--file 'lb/src/%.rs',$(MUTANTS))
endif

## The codecs of HTTP/1.1 and HTTP/2, values and expressions against arbitrary bytes, a minute for each
fuzz: tools-demo
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz"; exit 1; }
	for target in request_head response_head chunked http2 value; do \
		(cd lb && RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none $$target -- \
			-dict=fuzz/http1.dict -max_total_time=60) || exit 1; \
	done

## The compose stack on a Docker engine. VARIANTS="large small hardened" tests those
test-compose: python
	PATH="$(CURDIR)/target/python/bin:$$PATH" compose/test.sh $(VARIANTS)

tools-demo:
	@sh .ci/tools $(DEMO_TOOLS)

tools-test:
	@sh .ci/tools $(TEST_TOOLS)
	@sh .ci/trixie $(REDIS_8)
	@sh .ci/h2spec

python: tools-test
	@sh .ci/python
