"""adam_linf_ on the down-projections of many edits at once, against its reference, torch.compile of that without its
loop over the items, and torch's own fused Adam.

python -m pytest bench/bench_adam_linf.py --benchmark-group-by=param:dtype,param:shape
"""

import math
from collections.abc import Callable

import pytest
import torch
from harness import DEVICE, DTYPES, implementations, measure, name, traffic
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fasttrace.ops.adam_linf import adam_linf_, adam_linf_reference

SHAPES = [(32, 576, 1536), (2, 4096, 14336)]  # (P, d, n): SmolLM2-135M, Mistral-7B
ROWS = 15  # a prompt and its target


def batched(
    delta: Tensor, m: Tensor, v: Tensor, g: Tensor, k: Tensor, begin: Tensor, step: int, lr: float, limit: float
) -> Tensor:
    """The reference for items of equally many rows, without its loop, which is what torch.compile can fuse."""
    G = gradients(delta, g, k)
    m.lerp_(G, 0.1)
    v.mul_(0.999).addcmul_(G, G, value=0.001)
    denominator = v.sqrt() / math.sqrt(1 - 0.999**step) + 1e-8
    return delta.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step)).clamp_(-limit, limit)


def fused_adam(
    delta: Tensor, m: Tensor, v: Tensor, g: Tensor, k: Tensor, begin: Tensor, step: int, lr: float, limit: float
) -> Tensor:
    """What torch has for equally many rows: the gradients in one batched product, its fused Adam, a clamp."""
    steps = [torch.tensor(float(step), device=delta.device)]
    betas = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    options = {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
    torch._fused_adam_([delta], [gradients(delta, g, k)], [m], [v], [], steps, lr=lr, **betas, **options)
    return delta.clamp_(-limit, limit)


def gradients(delta: Tensor, g: Tensor, k: Tensor) -> Tensor:
    return torch.bmm(g.view(len(delta), -1, g.shape[1]).float().mT, k.view(len(delta), -1, k.shape[1]).float())


@implementations(auto=adam_linf_, reference=adam_linf_reference, compiled=batched, fused_adam=fused_adam)
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}x{0[2]}".format)
def test_adam_linf(
    benchmark: BenchmarkFixture,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    impl: str,
    function: Callable[..., Tensor],
) -> None:
    items, d, n = shape
    delta, m, v = (torch.zeros(shape, device=DEVICE) for _ in range(3))
    g, k = (torch.randn(ROWS * items, width, device=DEVICE).to(dtype) for width in (d, n))
    case = f"{items}x{d}x{n}, {ROWS} rows each, {name(dtype)}"
    args = (delta, m, v, g, k, torch.arange(items + 1) * ROWS, 7, 5e-4, 1e-3)
    gigabyte = 2 * traffic(delta, m, v) + traffic(g, k)
    measure(benchmark, "adam_linf_", case, impl, function, *args, gigabyte=gigabyte)
