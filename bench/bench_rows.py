"""What a block does to its rows between products: rms_norm, rotary_, silu_mul_, against their references.

python -m pytest bench/bench_rows.py --benchmark-group-by=func,param:dtype

Shapes are those of a sweep of SmolLM2-135M (4096 rows, d 576, m 1536, 9 heads of 64); window_restore has a
file of its own. gigabyte: what the pass reads and writes at the least.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.gated import silu_mul_, silu_mul_reference
from fasttrace.ops.rms_norm import rms_norm, rms_norm_reference
from fasttrace.ops.rotary import rotary_, rotary_reference

ROWS, D, M, HEADS, HEAD_DIM = 4096, 576, 1536, 9, 64
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def measure(benchmark: BenchmarkFixture, elements: int, dtype: torch.dtype, run: Callable[..., object]) -> None:
    benchmark.extra_info["gigabyte"] = elements * dtype.itemsize / 1e9
    with torch.inference_mode():
        benchmark.pedantic(run, rounds=9, iterations=3, warmup_rounds=2)


@pytest.mark.parametrize("named", [False, True], ids=["all", "rows"])
@pytest.mark.parametrize("method", [rms_norm, rms_norm_reference], ids=["op", "reference"])
@DTYPE
def test_rms_norm(
    benchmark: BenchmarkFixture, dtype: torch.dtype, method: Callable[..., torch.Tensor], named: bool
) -> None:
    x, weight = torch.randn(ROWS, D).to(dtype), torch.randn(D).to(dtype)
    rows = torch.arange(0, ROWS) // 8 * 8 if named else None
    measure(benchmark, 2 * x.numel(), dtype, lambda: method(x, weight, 1e-5, rows=rows))


@pytest.mark.parametrize("method", [rotary_, rotary_reference], ids=["op", "reference"])
@DTYPE
def test_rotary(benchmark: BenchmarkFixture, dtype: torch.dtype, method: Callable[..., torch.Tensor]) -> None:
    x = torch.randn(ROWS, HEADS, HEAD_DIM).to(dtype)
    angle = torch.rand(ROWS, HEAD_DIM // 2).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    measure(benchmark, 2 * x.numel(), dtype, lambda: method(x, cos, sin))


@pytest.mark.parametrize("method", [silu_mul_, silu_mul_reference], ids=["op", "reference"])
@DTYPE
def test_silu_mul(benchmark: BenchmarkFixture, dtype: torch.dtype, method: Callable[..., torch.Tensor]) -> None:
    # A gate of 1 stays there under the op, which writes over its input: no subnormal numbers, no overflow.
    gate = torch.ones(ROWS, M, dtype=dtype)
    up = 1 / torch.nn.functional.silu(gate)
    measure(benchmark, 3 * gate.numel(), dtype, lambda: method(gate, up))
