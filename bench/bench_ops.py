"""Times every op at its SHAPES, beside its reference, torch.compile of its definition and torch's own ops.

python -m pytest bench/bench_ops.py -k "rank_one_ and float32" --benchmark-group-by=param:case
The loads are in fasttrace.benchmarks.loads, one file per op. `fasttrace bench` times them at any shape.
"""

import pytest
import torch
from harness import DEVICE
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.benchmarks import OPS
from fasttrace.benchmarks.load import Draw, Way
from fasttrace.benchmarks.measure import COMPILED, DTYPES, prepare, ways

CASES = [
    (op, sizes, dtype) for op, module in OPS.items() for sizes in module.SHAPES for dtype in ("float32", "bfloat16")
]


def every_way() -> list[object]:
    """Every (op, sizes, dtype, way). The ways come from loads on "meta", which take no memory."""
    found = []
    for op, sizes, dtype in CASES:
        load = OPS[op].load(Draw.on(DTYPES[dtype], "meta"), **sizes)
        shape = " ".join(f"{name}={value}" for name, value in sizes.items())
        found += [pytest.param(op, sizes, dtype, way, id=f"{op} {shape} {dtype} {way}") for way in ways(load)]
    return found


@pytest.mark.parametrize(("op", "sizes", "dtype", "way"), every_way())
def test_op(benchmark: BenchmarkFixture, op: str, sizes: dict[str, int], dtype: str, way: str) -> None:
    case, load = prepare(op, sizes, dtype, DEVICE)
    call: Way = ways(load)[way]
    if way == COMPILED:
        torch.compiler.reset()  # the shapes of other cases would count towards the limit of recompilations
        call = torch.compile(call, dynamic=False)
    # A 0 means that the amount is not counted, so there is no rate either.
    amounts = {"gigabyte": load.gigabyte or None, "gigaflop": load.gigaflop or None}
    benchmark.extra_info.update(benchmark=op, case=case, impl=way, **amounts)

    def run() -> None:
        call(*load.args)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode(not load.grad):
        try:
            run()
        except Exception as error:
            if way != COMPILED:
                raise
            ways(load)[way](*load.args)  # raises if the way fails uncompiled too
            pytest.skip(f"torch.compile: {str(error).strip().splitlines()[0]}")
        benchmark.pedantic(run, rounds=7, warmup_rounds=1)
