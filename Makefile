# The two commands of the README's first page, and what CI runs.

.PHONY: up test lint toolchain

# Builds the release binary and runs a whole cluster on this machine, in ./protoplex-data. Ctrl-C ends it.
up: toolchain
	@cargo build --release --locked -p protoplex
	@exec target/release/protoplex up $(ARGS)

# Installs what the tests need (Debian packages, where any are missing) and runs them.
test: toolchain
	@scripts/install-test-tools
	@if cargo nextest --version >/dev/null 2>&1; then exec cargo nextest run --workspace --locked $(ARGS); \
	 else exec cargo test --workspace --locked $(ARGS); fi

lint: toolchain
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

toolchain:
	@scripts/check-toolchain
