"""An MLP's activation in one pass over memory, where transformers writes the same function out in eight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasttrace.ops.gelu_tanh import gelu_tanh_

# gelu(x) ≈ x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), under transformers' names for it; the last two have √(2/π) to
# 8 and 10 digits, which float64 tells apart.
TANH_GELUS = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "BloomGelu", "FastGELUActivation")
SHORT = TANH_GELUS[3:]


def activation(module: Any) -> Callable[[Tensor], Tensor]:
    """What computes as `module` (of transformers) does: `gelu_tanh_` for a GELU by tanh, else the module itself.

    It may write over what it is given. In bfloat16 it rounds once, where the eight steps round eight times.
    """
    name, as_written = type(module).__name__, module
    if name not in TANH_GELUS:
        found: Callable[[Tensor], Tensor] = as_written
        return found
    if name in SHORT:
        return lambda x: as_written(x) if x.dtype == torch.float64 else gelu_tanh_(x)
    return gelu_tanh_
