"""An MLP's activation in one pass over memory, where transformers computes the same function in eight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasttrace.ops.gelu_tanh import gelu_tanh_

# gelu(x) ≈ x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))) under transformers' names for it. The last two write √(2/π)
# with 8 and 10 digits, a difference that shows in float64.
TANH_GELUS = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "BloomGelu", "FastGELUActivation")
SHORT = TANH_GELUS[3:]


def activation(module: Any) -> Callable[[Tensor], Tensor]:
    """A function that computes what `module` (of transformers) does: `gelu_tanh_` for a tanh GELU, else the module.

    It may overwrite its argument. In bfloat16 it rounds once, where the eight steps round eight times.
    """
    name, as_written = type(module).__name__, module
    if name not in TANH_GELUS:
        found: Callable[[Tensor], Tensor] = as_written
        return found
    if name in SHORT:
        return lambda x: as_written(x) if x.dtype == torch.float64 else gelu_tanh_(x)
    return gelu_tanh_
