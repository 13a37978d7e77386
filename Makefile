# make demo     install what it needs, build, run a pod with a web server, leave nothing behind
# make test     everything CI runs: packages, lint, build, all tests
# make build    every binary, unoptimised (what demo and tests use)
# make lint     formatting, house rules, clippy; cargo-deny where it is installed
# make bench    optimised build, measured against Debian's containerd (pods, pulls) and skopeo (pulls)
# make install  optimised build into $(DESTDIR)$(PREFIX)/bin
# make fuzz     half a million mutations through every parser of foreign bytes (ROUNDS=N for N times 20,000)

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
BINARIES = crio crio-monitor crio-shim crio-cni crioctl
TARGET_DIR ?= $(or $(CARGO_TARGET_DIR),target)

# Demo and tests share one profile, so that one build serves both.
DEBUG_DIR = $(TARGET_DIR)/debug
RELEASE_DIR = $(TARGET_DIR)/release

.NOTPARALLEL:
.PHONY: demo test build release bench install lint fuzz setup clean

demo:
	.ci/setup demo
	$(CARGO) build --package crio --package monitor --package crioctl
	demo/demo.sh $(DEBUG_DIR)

setup:
	.ci/setup test

build:
	$(CARGO) build --workspace --bins

release:
	$(CARGO) build --release --package crio --package monitor --package shim-client --package cni --package crioctl

# Documentation examples first: the last lines are those of the runner that ran everything else.
test: setup lint build
	$(CARGO) test --quiet --workspace --doc
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  echo "$(CARGO) nextest run --workspace"; $(CARGO) nextest run --workspace; \
	else \
	  echo "$(CARGO) test --workspace --lib --bins --tests"; $(CARGO) test --workspace --lib --bins --tests; \
	fi

lint:
	$(CARGO) fmt --all --check
	$(CARGO) xtask tidy
	$(CARGO) clippy --quiet --workspace --all-targets -- --deny warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo-deny is not installed: skipped"; fi

bench: release
	.ci/setup bench
	$(CARGO) build --release --package cri-bench
	tests/bench.sh $(RELEASE_DIR)
	tests/bench-pull.sh $(RELEASE_DIR)

install: release
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(addprefix $(RELEASE_DIR)/,$(BINARIES)) $(DESTDIR)$(PREFIX)/bin/

fuzz:
	PARSERS_ROUNDS=$(or $(ROUNDS),25) $(CARGO) test --package parsers

clean:
	$(CARGO) clean
