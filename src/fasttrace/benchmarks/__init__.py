"""Every op, timed at any shape beside what else computes the same: `fasttrace bench`, and bench/ of the repository."""

from fasttrace.benchmarks.measure import OPS, Ceilings, bench, ceilings, checked, sizes_of
from fasttrace.benchmarks.result import BenchResult, about, bench_result
from fasttrace.benchmarks.tuning import TILED, check_tiled, fastest, record, tune

__all__ = [
    "OPS", "TILED", "BenchResult", "Ceilings", "about", "bench", "bench_result", "ceilings", "check_tiled", "checked",
    "fastest", "record", "sizes_of", "tune",
]  # fmt: skip
