"""window_restore on the rows of a wave, against its reference and torch.compile of it.

python -m pytest bench/bench_window_restore.py --benchmark-group-by=param:shape,param:dtype
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fasttrace.ops.window_restore import window_restore, window_restore_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(4096, 576), (8192, 4096)]  # (P, d): SmolLM2-135M, GPT-J


def add_only(h: torch.Tensor, out: torch.Tensor, base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """The residual sum alone, which any engine pays: the least this op could cost."""
    return h + out


METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "op": window_restore,
    "reference": window_restore_reference,
    "compiled reference": torch.compile(window_restore_reference, dynamic=True),
    "add only": add_only,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_window_restore(
    benchmark: BenchmarkFixture, shape: tuple[int, int], dtype: torch.dtype, method: str
) -> None:
    p, d = shape
    h, out = (torch.randn(p, d, device=DEVICE).to(dtype) for _ in range(2))
    base, source = torch.arange(p, device=DEVICE), torch.arange(p, device=DEVICE)
    source[::7] = 3
    benchmark.extra_info["gigabyte"] = 3 * h.numel() * h.element_size() / 1e9

    def run() -> None:
        METHODS[method](h, out, base, source)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        benchmark.pedantic(run, rounds=9, warmup_rounds=2)
