"""gelu_tanh_ of an MLP's keys, beside torch's own op and transformers' eight steps."""

import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.gelu_tanh import gelu_tanh_, gelu_tanh_reference

SHAPES: list[dict[str, int]] = [{}]


def load(draw: Draw, rows: int = 2048, m: int = 3072) -> Load:
    """x (rows, m)."""
    # The op overwrites its input. Numbers from 8 on do not change, so repeated calls make no subnormal numbers. The
    # comparison before the timing therefore shows little; tests/ops/test_gelu_tanh.py tests the rest.
    x = 8 + draw.normal(rows, m).abs()
    return Load(gelu_tanh_, (x,), gelu_tanh_reference, {"gelu": _gelu, "eight steps": _steps}, gigabyte=traffic(x, x))


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _steps(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))
