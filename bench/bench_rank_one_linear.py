"""rank_one_linear on a down-projection, every 16 rows with an edit of their own, against its reference, torch.compile
of that, and the product alone; and rank_one_add_ alone against its reference.

python -m pytest bench/bench_rank_one_linear.py --benchmark-group-by=func,param:dtype,param:shape,param:width
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name, traffic
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fasttrace.ops.linear import linear
from fasttrace.ops.rank_one_linear import rank_one_add_, rank_one_add_reference, rank_one_linear

SHAPES = [(2048, 1536, 576), (512, 14336, 4096)]  # (N, m, d): SmolLM2-135M, Mistral-7B
ROWS = 16  # a prompt's
WIDTHS = pytest.mark.parametrize("width", [1, 5], ids="w{}".format)


def reference(x: Tensor, W: Tensor, bias: None, edit: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return rank_one_linear(x, W, bias, edit, key, value, impl="reference")


def product_only(x: Tensor, W: Tensor, bias: None, edit: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The unedited layer, which any way of editing pays."""
    return linear(x, W, bias)


def drawn(shape: tuple[int, int, int], width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(x, edit, key, value)"""
    rows, m, d = shape
    edit = torch.arange(rows, device=DEVICE) // ROWS
    key, value = (torch.randn(rows // ROWS, width, size, device=DEVICE) / m for size in (m, d))
    return torch.randn(rows, m, device=DEVICE).to(dtype), edit, key, value


@implementations(auto=rank_one_linear, reference=reference, compiled=reference, product_only=product_only)
@WIDTHS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}x{0[2]}".format)
def test_rank_one_linear(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    width: int,
    impl: str,
    function: Callable[..., Tensor],
) -> None:
    rows, m, d = shape
    x, edit, key, value = drawn(shape, width, dtype)
    W = torch.randn(d, m, device=DEVICE).to(dtype)
    case = f"{rows}x{m}x{d} {name(dtype)}, {width} updates an edit"
    gigaflop = 2e-9 * rows * (m * d + width * (m + d))
    measure(benchmark, "rank_one_linear", case, impl, function, x, W, None, edit, key, value, gigaflop=gigaflop)


@implementations(auto=rank_one_add_, reference=rank_one_add_reference, compiled=rank_one_add_reference)
@WIDTHS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}x{0[2]}".format)
def test_rank_one_add(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    width: int,
    impl: str,
    function: Callable[..., Tensor],
) -> None:
    rows, m, d = shape
    x, edit, key, value = drawn(shape, width, dtype)
    y = torch.zeros(rows, d, dtype=dtype, device=DEVICE)
    case = f"{rows}x{m}x{d} {name(dtype)}, {width} updates an edit"
    gigabyte = traffic(y, y, x, edit, key, value)
    measure(benchmark, "rank_one_add_", case, impl, function, y, x, edit, key, value, gigabyte=gigabyte)
