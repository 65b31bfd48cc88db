"""Writes results of the benchmarks that pytest runs (bench_ops and bench_moments), each row as soon as it is done.

python -m pytest bench [--record] [--out FILE] [--store FILE]
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness import BenchRow, Results, about, writes
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.errors import UserError

RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("results of benchmarks")
    group.addoption("--record", action="store_true", help="write JSON to bench/results/MACHINE/DATE-ops.json")
    writes(group.addoption)


def pytest_configure(config: pytest.Config) -> None:
    out, store = config.getoption("out"), config.getoption("store")
    if not (out or store or config.getoption("record")):
        return
    told = about(command=" ".join(["pytest", *config.invocation_params.args]))
    with _in_a_sentence():
        config.stash[RESULTS] = Results("ops", told, out, store)


@pytest.fixture(autouse=True)
def _recorded(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    results = request.config.stash.get(RESULTS, None)
    if results is not None and benchmark.stats and not benchmark.has_error:
        with _in_a_sentence():
            results.add(row_of(benchmark))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if RESULTS in config.stash:
        terminalreporter.write_line(str(config.stash[RESULTS]))


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Turn a UserError into one sentence and exit code 2."""
    try:
        yield
    except UserError as error:
        pytest.exit(str(error), returncode=2)


def row_of(benchmark: BenchmarkFixture) -> BenchRow:
    """The row of a benchmark: its median, quartiles and rates."""
    told, stats = dict(benchmark.extra_info), benchmark.stats.stats
    gigabyte, gigaflop = told.pop("gigabyte", None), told.pop("gigaflop", None)
    row = {**told, "seconds": stats.median, "quartiles": [stats.q1, stats.q3], "n": stats.rounds}
    if gigabyte is not None:
        row["GB/s"] = gigabyte / stats.median
    if gigaflop is not None:
        row["GFLOP/s"] = gigaflop / stats.median
    return row
