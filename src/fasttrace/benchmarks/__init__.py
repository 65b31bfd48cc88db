"""Times every op at any shape beside other ways to compute it, for `fasttrace bench` and the scripts in bench/."""

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.benchmarks.measure import OPS, Ceilings, add_op, bench, ceilings, checked, sizes_of
from fasttrace.benchmarks.result import BenchResult, about, bench_result
from fasttrace.benchmarks.tuning import TILED, check_tiled, fastest, record, tune

__all__ = [
    "OPS",
    "TILED",
    "BenchResult",
    "Ceilings",
    "Draw",
    "Load",
    "about",
    "add_op",
    "bench",
    "bench_result",
    "ceilings",
    "check_tiled",
    "checked",
    "fastest",
    "record",
    "sizes_of",
    "traffic",
    "tune",
]
