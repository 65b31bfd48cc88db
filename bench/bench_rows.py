"""What a block does to its rows between products: rms_norm, rotary_, silu_mul_, against their references.

python -m pytest bench/bench_rows.py --benchmark-group-by=func,param:dtype

Shapes are those of a sweep of SmolLM2-135M (4096 rows, d 576, m 1536, 9 heads of 64); window_restore has a
file of its own. Gigabytes: what the pass reads and writes at the least.
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name, traffic
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.gated import silu_mul_, silu_mul_reference
from fasttrace.ops.rms_norm import rms_norm, rms_norm_reference
from fasttrace.ops.rotary import rotary_, rotary_reference

ROWS, D, M, HEADS, HEAD_DIM = 4096, 576, 1536, 9, 64
OFTEN = {"rounds": 9, "iterations": 3}
Op = Callable[..., torch.Tensor]


def named_rows(op: Op) -> Op:
    """rms_norm of rows named by index, every one eight times."""
    rows = torch.arange(ROWS, device=DEVICE) // 8 * 8
    return lambda x, weight, eps: op(x, weight, eps, rows=rows)


@implementations(auto=rms_norm, reference=rms_norm_reference, compiled=rms_norm_reference)
@pytest.mark.parametrize("named", [False, True], ids=["all", "rows"])
@DTYPES
def test_rms_norm(benchmark: BenchmarkFixture, dtype: torch.dtype, named: bool, impl: str, function: Op) -> None:
    x, weight = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in ((ROWS, D), (D,)))
    case = f"{ROWS}x{D} {name(dtype)}{', rows by index' if named else ''}"
    op = named_rows(function) if named else function
    measure(benchmark, "rms_norm", case, impl, op, x, weight, 1e-5, gigabyte=traffic(x, x), **OFTEN)


@implementations(auto=rotary_, reference=rotary_reference, compiled=rotary_reference)
@DTYPES
def test_rotary(benchmark: BenchmarkFixture, dtype: torch.dtype, impl: str, function: Op) -> None:
    x = torch.randn(ROWS, HEADS, HEAD_DIM, device=DEVICE).to(dtype)
    angle = torch.rand(ROWS, HEAD_DIM // 2, device=DEVICE).repeat(1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    case = f"{ROWS}x{HEADS}x{HEAD_DIM} {name(dtype)}"
    measure(benchmark, "rotary_", case, impl, function, x, cos, sin, gigabyte=traffic(x, x), **OFTEN)


@implementations(auto=silu_mul_, reference=silu_mul_reference, compiled=silu_mul_reference)
@DTYPES
def test_silu_mul(benchmark: BenchmarkFixture, dtype: torch.dtype, impl: str, function: Op) -> None:
    # A gate of 1 stays there under the op, which writes over its input: no subnormal numbers, no overflow.
    gate = torch.ones(ROWS, M, dtype=dtype, device=DEVICE)
    up = 1 / torch.nn.functional.silu(gate)
    measure(
        benchmark, "silu_mul_", f"{ROWS}x{M} {name(dtype)}", impl, function, gate, up, gigabyte=traffic(gate, gate, up),
        **OFTEN,
    )  # fmt: skip
