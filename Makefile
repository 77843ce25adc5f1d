# What developers type. `make` alone prints this list.

CARGO_TARGET_DIR ?= $(CURDIR)/target
CARGO_DENY_VERSION := 0.20.2
TOOLS := $(if $(OCI_MODEL_CSI_CACHE),$(OCI_MODEL_CSI_CACHE),$(HOME)/.cache/oci-model-csi)
CARGO_DENY := $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

export CARGO_TARGET_DIR
export LOCALSTORE_BIN ?= $(CARGO_TARGET_DIR)/debug/localstore
export OCI_MODEL_CSI_BIN ?= $(CARGO_TARGET_DIR)/debug/oci-model-csi

# The tests of the driver as a process wait more than they compute.
INTEGRATION_THREADS ?= 6

.PHONY: help
help: ## Print this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: ## Try the driver on this machine, without Kubernetes and without an account
	demo/run.sh

# clippy's profile `test` reads unit tests, and not the integration tests, which `make lint` reads:
# after a change of the lowest crate 21 s of processor time in place of 73 s.
.PHONY: check
check: ## After a small change: formatting, clippy and the unit tests
	cargo fmt --all --check
	cargo clippy --locked --lib --bins --profile test -- -D warnings
	cargo test --locked --lib --bins

.PHONY: test
test: rust sanity clients ## Run rust, sanity and clients

.PHONY: rust
rust: ## cargo test: unit tests, then the integration tests with real mounts
	cargo test --locked --no-fail-fast --lib --bins
	RUST_TEST_THREADS=$(INTEGRATION_THREADS) tests/integration.sh
	cargo test --locked --no-fail-fast --doc

# Rounds of the tests that kill the driver and that cut its power; .ci/run has 4 and 3.
NIGHTLY_KILLS ?= 100
NIGHTLY_CUTS ?= 20

.PHONY: nightly
nightly: ## Thousands of random kills and power losses, and 840,000 files (takes an hour); prints the seeds
	OCI_MODEL_CSI_TEST_REQUIRE_NAMESPACES=1 OCI_MODEL_CSI_TEST_ROUNDS=$(NIGHTLY_KILLS) \
		env --unset=OCI_MODEL_CSI_TEST_SEED cargo test --locked --no-fail-fast --test it kill_points::
	OCI_MODEL_CSI_TEST_REQUIRE_NAMESPACES=1 OCI_MODEL_CSI_TEST_ROUNDS=$(NIGHTLY_CUTS) \
		env --unset=OCI_MODEL_CSI_TEST_SEED cargo test --locked --no-fail-fast --test it power_loss::
	OCI_MODEL_CSI_TEST_REQUIRE_NAMESPACES=1 OCI_MODEL_CSI_TEST_LARGE=1 \
		cargo test --locked --test it memory::the_memory_of_models_with_many_files

.PHONY: sanity
sanity: ## Run csi-sanity against the driver (installs it with Go)
	csi-sanity/run.sh

.PHONY: clients
clients: ## Test with oci-cli, the Python SDK, rclone, promtool and a real model (installs them with pip and Go)
	cargo build --locked --bins
	venv="$$(tests/tools.sh)" && \
		tools="$$(PYTHON="$$venv/bin/python" tests/deploy/tools.sh)" && \
		DEPLOY_TOOLS="$$tools" "$$venv/bin/pytest" -q tests/clients

.PHONY: deploy-test
deploy-test: ## Test the chart and the kustomizations (installs helm and others with Go)
	venv="$$(tests/tools.sh tests/deploy/requirements.txt)" && \
		tools="$$(PYTHON="$$venv/bin/python" tests/deploy/tools.sh)" && \
		DEPLOY_TOOLS="$$tools" "$$venv/bin/pytest" -q tests/deploy

.PHONY: e2e-tools
e2e-tools: ## Build the programs of the test cluster; takes minutes, once
	venv="$$(tests/tools.sh tests/cluster/requirements.txt)" && PYTHON="$$venv/bin/python" tests/cluster/build.sh

.PHONY: e2e
e2e: ## Run all scenarios with the driver in a Kubernetes cluster of its own (needs root)
	tests/cluster/run.sh

.PHONY: e2e-core
e2e-core: ## Run only the scenarios that CI runs
	tests/cluster/run.sh -m core

.PHONY: fmt
fmt: ## Format the Rust code
	cargo fmt --all

.PHONY: lint
lint: ## Check formatting, clippy, shellcheck, generated code and spelling
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@command -v shellcheck >/dev/null || { echo "shellcheck is missing: install Debian's shellcheck" >&2; exit 1; }
	shellcheck --severity=warning $$(git ls-files '*.sh') .ci/commit .ci/ran .ci/run
	cargo run --locked --quiet --package generate-proto -- --check
	codespell="$$(tests/tools.sh tests/spelling/requirements.txt)/bin/codespell" && \
		git ls-files | xargs "$$codespell" --quiet-level=3

.PHONY: proto
proto: ## Generates proto/csi.v1.rs from proto/csi.proto
	cargo run --locked --package generate-proto

.PHONY: doc
doc: ## Build the API documentation; warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

# Not with --quiet: then --strict sees no warnings.
.PHONY: site
site: ## Build the documents as a site into target/site, and check it (installs MkDocs with pip; needs Node)
	venv="$$(tests/tools.sh site/requirements.txt)" && \
		NO_MKDOCS_2_WARNING=1 "$$venv/bin/mkdocs" build --strict && "$$venv/bin/pytest" -q -p no:cacheprovider site

.PHONY: msrv
msrv: ## Build with the oldest Rust that Cargo.toml supports
	rustup toolchain install $(MSRV).0 --profile minimal --no-self-update
	cargo +$(MSRV).0 check --locked --lib --bins

# The cross compiler, the emulator, and the C library that the tests find there.
ARM := aarch64-unknown-linux-gnu

.PHONY: arm
arm: ## Compile for 64-bit ARM and run it, under emulation (needs qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross)
	rustup target add $(ARM)
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
		CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
		cargo test --locked --target $(ARM) --package oci-model-csi-md5-lanes --lib
	tests/arm/run.sh

.PHONY: feature
feature: ## Check that the feature oci-rust-sdk builds, and signs as our own signer does
	# The whole workspace, so that cargo reuses what other targets have built.
	cargo test --locked --workspace --features oci-model-csi/oci-rust-sdk --lib sign

.PHONY: deny
deny: $(CARGO_DENY) ## Check licences, bans and sources of all dependencies
	$(CARGO_DENY) --log-level error check --hide-inclusion-graph licenses bans sources

$(CARGO_DENY):
	cargo install --quiet --locked --debug cargo-deny --version $(CARGO_DENY_VERSION) \
		--root $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION) --target-dir $(TOOLS)/build
	rm -rf $(TOOLS)/build

.PHONY: bench
bench: ## Compare with curl, rclone and the oci CLI, and write docs/performance.md (as root; 12 GB of disk)
	benches/compare.sh

.PHONY: starts
starts: ## Compare pod starts with bulk-download, also under faults, and write docs/bulk-download.md (as root)
	benches/starts.sh

.PHONY: signatures
signatures: ## Measure signatures, and their part of the CPU time of a download (as root; 4 GB of disk)
	benches/signatures.sh

.PHONY: bench-pure
bench-pure: ## Measure the pure parts with criterion: MD5 lanes, CRCs, patterns, listings, headers, signatures
	cargo bench --locked --package pure-benches

.PHONY: clean
clean: ## Remove build outputs; installed tools stay in ~/.cache/oci-model-csi
	cargo clean
