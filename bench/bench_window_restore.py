"""window_restore on the rows of a wave, against its reference and torch.compile of it.

python -m pytest bench/bench_window_restore.py --benchmark-group-by=param:shape,param:dtype
"""

from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name, traffic
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.window_restore import window_restore, window_restore_reference

SHAPES = [(4096, 576), (8192, 4096)]  # (P, d): SmolLM2-135M, GPT-J


def add_only(h: torch.Tensor, out: torch.Tensor, base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The residual sum alone, which any engine pays: the least this op could cost."""
    return h + out


@implementations(
    auto=window_restore, reference=window_restore_reference, compiled=window_restore_reference, add_only=add_only
)
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
def test_window_restore(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int],
    dtype: torch.dtype,
    impl: str,
    function: Callable[..., torch.Tensor],
) -> None:
    p, d = shape
    h, out = (torch.randn(p, d, device=DEVICE).to(dtype) for _ in range(2))
    base, source = torch.arange(p, device=DEVICE), torch.arange(p, device=DEVICE)
    source[::7] = 3
    case = f"{p}x{d} {name(dtype)}"
    measure(benchmark, "window_restore", case, impl, function, h, out, base, source, gigabyte=traffic(h, out, h))
