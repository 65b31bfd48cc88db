"""The tanh GELU of an MLP in one pass over memory, where transformers takes eight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasttrace.ops.gelu_tanh import gelu_tanh_

# transformers' classes that compute gelu(x) ≈ x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))). The last two write √(2/π)
# with 8 and 10 digits, which makes a difference in float64.
TANH_GELUS = ("NewGELUActivation", "GELUTanh", "PytorchGELUTanh", "BloomGelu", "FastGELUActivation")
SHORT = TANH_GELUS[3:]


def activation(module: Any) -> Callable[[Tensor], Tensor]:
    """A function equal to the transformers module `module`: `gelu_tanh_` for a tanh GELU, else the module itself.

    The function may overwrite its argument. In bfloat16 `gelu_tanh_` rounds once, where the eight steps of transformers
    round eight times.
    """
    name, as_written = type(module).__name__, module
    if name not in TANH_GELUS:
        found: Callable[[Tensor], Tensor] = as_written
        return found
    if name in SHORT:
        return lambda x: as_written(x) if x.dtype == torch.float64 else gelu_tanh_(x)
    return gelu_tanh_
