"""Every op, timed at any shape beside what else computes the same: `fasttrace bench`, and bench/ of the repository."""

from fasttrace.benchmarks.measure import OPS, Ceilings, bench, ceilings, checked, sizes_of
from fasttrace.benchmarks.result import BenchResult, about, bench_result

__all__ = ["OPS", "BenchResult", "Ceilings", "about", "bench", "bench_result", "ceilings", "checked", "sizes_of"]
